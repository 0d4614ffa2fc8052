"""The compiled programs of a system, and their memory and cost on a chip."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.compiler import flops, hlo, rates, roofline
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.retrieval import exact
from pinjax.systems import system
from pinjax.training import step


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to compile.

    Attributes:
      name: for messages and tables.
      function: jitted.
      arguments: by name, in order, pytrees of abstract shapes with shardings.
      flops: model FLOPs of a chip.
    """

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    flops: float

    def bytes(self) -> dict[str, int]:
        """Bytes of each argument on a chip."""
        return {name: bytes_on_chip(tree) for name, tree in self.arguments.items()}


@dataclasses.dataclass(frozen=True)
class Report:
    """The memory and cost of a program on a chip; sizes are in bytes.

    Attributes:
      arguments: by name, without the padding of layouts.
      temporary: memory that is used only during a call, mostly activations.
      peak: peak memory: arguments, results, temporary and the program.
      model_flops: from the shapes of the model's matrix products; a train step has three times
        those of the forward pass.
      compiled_flops: of the matrix products in the compiled program, with recomputation.
      xla_flops: of the compiler's `cost_analysis`, which counts the body of a loop once.
      traffic: read from and written to main memory.
      collectives: the largest first.
      unknown_loops: number of loops that are left out, as their iterations are unknown.
      seconds: to lower and compile.
      roofline: None if the chip's rates are not known.
    """

    arguments: dict[str, int]
    temporary: int
    peak: int
    model_flops: float
    compiled_flops: float
    xla_flops: float
    traffic: float
    collectives: list[hlo.Collective]
    unknown_loops: int
    seconds: float
    roofline: roofline.Roofline | None

    @property
    def sent(self) -> float:
        """Bytes that a chip sends to others."""
        return sum(collective.sent for collective in self.collectives)


def bytes_on_chip(tree: Any) -> int:
    """Bytes of arrays on one device, by their shapes and shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def train_step(trainable: system.Trainable, config: ConfigDict, mesh: Mesh) -> Program:
    """The step of `training.loop`, with its state donated."""
    constants, batch = trainable.constants, trainable.batch
    optimizer = step.make_optimizer(config)
    state = step.abstract_state(trainable, optimizer, config, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    forward = flops.of_matmuls(
        trainable.loss,
        state.params,
        constants,
        state.sketches,
        batch,
        key,
        devices=mesh.size,
    )
    function = step.make_step(trainable, optimizer)

    def by_part(params, opt_state, rest, constants, batch):
        return function(step.State(params=params, opt_state=opt_state, **rest), constants, batch)

    places = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
    rest = {"step": state.step, "sketches": state.sketches, "key": state.key}
    return Program(
        "train step",
        jax.jit(by_part, donate_argnums=(0, 1, 2), out_shardings=places),
        {
            "parameters": state.params,
            "optimiser": state.opt_state,
            "sketches": rest,
            "feature table": constants,
            "batch": batch,
        },
        3 * forward / mesh.size,
    )


def others(trainable: system.Trainable, config: ConfigDict, mesh: Mesh) -> list[Program]:
    """The programs that embed and search, with a train step's sharding of the parameters."""
    state = step.abstract_state(trainable, step.make_optimizer(config), config, mesh)
    made = []
    for name, embedder in trainable.embedders.items():
        arguments = {
            "parameters": state.params,
            "feature table": embedder.reads(trainable.constants),
            "batch": sharding.abstract(mesh, embedder.batch),
        }
        forward = flops.of_matmuls(embedder.function, *arguments.values(), devices=mesh.size)
        program = Program(f"embed {name}", embedder.function, arguments, forward / mesh.size)
        made.append(program)
    return [*made, _search(trainable.search, mesh)]


def _search(search: system.Search, mesh: Mesh) -> Program:
    """Exact search; every device does all of it."""
    items, dim, results = search

    def function(queries: jax.Array, index: tuple[jax.Array, jax.Array]) -> Any:
        vectors, valid = index
        return exact.search(queries, vectors, min(results, items), valid=valid)

    vectors = jax.ShapeDtypeStruct((items, dim), jnp.float32)
    index = vectors, jax.ShapeDtypeStruct((items,), jnp.bool_)
    queries = jax.ShapeDtypeStruct((exact.QUERIES, dim), jnp.float32)
    queries, index = sharding.abstract(mesh, (queries, index))
    forward = flops.of_matmuls(function, queries, index, devices=1)
    return Program("search", jax.jit(function), {"batch": queries, "index": index}, forward)


def check_arguments(program: Program, chip: rates.Chip, advice: str) -> None:
    """Raises, before anything is compiled, if the arguments alone exceed a chip's memory."""
    arguments = program.bytes()
    if sum(arguments.values()) > chip.memory:
        largest = max(arguments, key=arguments.get)
        raise InputError(
            f"{program.name}: the {largest} takes {rates.size(arguments[largest])} of the "
            f"{rates.size(chip.memory)} of a {chip.name}, all arguments "
            f"{rates.size(sum(arguments.values()))}; change {advice}"
        )


def measure(program: Program, chip: rates.Chip | None, advice: str) -> Report:
    """Compiles a program.

    Args:
      program: what to compile.
      chip: with the bounds of memory and rates, if known.
      advice: what to change if memory is too small.

    Raises:
      InputError: if the program does not fit in a chip's memory.
    """
    start = time.monotonic()
    lowered = program.function.lower(*program.arguments.values())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(_too_large(program, _needed(str(error)), advice)) from None
    seconds = time.monotonic() - start
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # of some programs with asynchronous updates
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{program.name}: the compiler cannot print its program: {reason}"
        ) from None
    memory, found = compiled.memory_analysis(), hlo.cost(text)
    report = Report(
        arguments=program.bytes(),
        temporary=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        model_flops=program.flops,
        compiled_flops=found.flops,
        xla_flops=(compiled.cost_analysis() or {}).get("flops", float("nan")),
        traffic=found.bytes,
        collectives=found.collectives,
        unknown_loops=found.unknown_loops,
        seconds=seconds,
        roofline=None,
    )
    if chip is None:
        return report
    if report.peak > chip.memory:  # a GPU's compiler does not check
        needed = f"{rates.size(report.peak)} of the {rates.size(chip.memory)}"
        raise InputError(_too_large(program, needed, advice))
    bound = roofline.Roofline(chip, report.model_flops, report.traffic, report.sent)
    return dataclasses.replace(report, roofline=bound)


def _needed(error: str) -> str:
    """The needed and the available memory, from the TPU compiler's error."""
    sizes = re.findall(r"([\d.]+)([KMGT])\b", error)
    return " of the ".join(f"{number} {unit}iB" for number, unit in sizes[:2])


def _too_large(program: Program, needed: str, advice: str) -> str:
    """A message with the largest array of the program, as the compiler names none."""
    jaxpr = jax.make_jaxpr(program.function)(*program.arguments.values()).jaxpr
    size, shape, where = _largest(jaxpr)
    return (
        f"{program.name}: a chip needs {needed} that it has; the largest array over all chips is "
        f"{shape}, {rates.size(size)}, in {where}; change {advice}"
    )


def _largest(jaxpr) -> tuple[int, str, str]:
    """Bytes, shape and source of the largest result of an operation."""
    best = 0, "", ""
    for equation in jaxpr.eqns:
        inner = [_largest(program) for program in flops.jaxprs(equation.params)]
        place = str(equation.source_info.name_stack) or equation.primitive.name
        own = [
            (
                var.aval.size * var.aval.dtype.itemsize,
                f"{var.aval.dtype}{list(var.aval.shape)}",
                place,
            )
            for var in equation.outvars
            if hasattr(var.aval, "dtype")
        ]
        best = max([best, *own, *inner], key=lambda found: found[0])
    return best
