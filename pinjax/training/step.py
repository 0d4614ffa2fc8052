"""Train state, and the train step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import struct
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.distributed import sharding
from pinjax.systems import system as system_lib

# Of AdamW. With B2 = 0.98 the second moment forgets the large first gradients in some 50 steps;
# Adam's usual 0.999 takes 1,000.
B1, B2 = 0.9, 0.98


class State(struct.PyTreeNode):
    """The state of a run between steps, and the content of a checkpoint.

    Attributes:
      step: int32 scalar, steps done.
      params: pytree of float32.
      opt_state: optax's.
      sketches: the system's count-min sketches.
      key: uint32 data of the run's random key; each step folds its number into it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    sketches: Any
    key: jax.Array


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, linear warm-up and cosine decay to zero."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, config.steps),
        decay_steps=max(config.steps, config.warmup_steps + 1),
    )
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=B1,
            b2=B2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params: Any) -> Any:
    """Weight decay applies to matrices of layers, not to biases, scales or embeddings."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: getattr(path[-1], "key", None) in ("kernel", "key", "value"), params
    )


def init_state(
    trainable: system_lib.Trainable, optimizer: optax.GradientTransformation, seed: int
) -> State:
    init_key, key = jax.random.split(jax.random.key(seed))
    params, sketches = trainable.init(init_key)
    return State(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=params,
        opt_state=optimizer.init(params),
        sketches=sketches,
        key=jax.random.key_data(key),
    )


def abstract_state(
    trainable: system_lib.Trainable,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
) -> State:
    """The abstract shapes of `init_state`, sharded as the `train` section says.

    Raises:
      InputError: if the section's rules do not fit the state.
    """
    shapes = jax.eval_shape(lambda: init_state(trainable, optimizer, config.seed))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        sharding.of_state(mesh, config, shapes),
    )


def begin(trainable: system_lib.Trainable, config: ConfigDict, mesh: Mesh) -> State:
    """The state before the first step, sharded as the `train` section says.

    Raises:
      InputError: as `abstract_state`.
    """
    optimizer = make_optimizer(config)
    like = abstract_state(trainable, optimizer, config, mesh)
    init = functools.partial(init_state, trainable, optimizer, config.seed)
    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))()


def make_step(
    trainable: system_lib.Trainable, optimizer: optax.GradientTransformation
) -> Callable[[State, Any, system_lib.Batch], tuple[State, system_lib.Metrics]]:
    """(state, constants, batch) -> (state, metrics), to be jitted with the state donated."""

    def train_step(state: State, constants: Any, batch: system_lib.Batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (loss, (metrics, sketches)), grads = jax.value_and_grad(trainable.loss, has_aux=True)(
            state.params, constants, state.sketches, batch, key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        return (
            state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
                sketches=sketches,
            ),
            metrics,
        )

    return train_step
