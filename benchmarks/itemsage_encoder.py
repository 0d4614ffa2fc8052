"""ItemSage's product encoder against the same in PyTorch: seconds, forward and backward.

    python -m benchmarks.itemsage_encoder [PYTHON]

PYTHON has PyTorch; the default is .venv-peers/bin/python, see requirements-peers.txt. At the
published size (20 images of 256, 12 texts of 5 tokens on average, a table of 100,000 x 256,
one block of width 512 with 8 heads), 512 products a batch, float32, on
the CPU. Both get the same weights, and their embeddings and gradients are compared. Takes some
minutes.

PyTorch's encoder is built of PyTorch's own layers, so it computes the block at every position.
pinjax's computes it only at [CLS], whose output is all that is used: this is nearly all of the
ratio.
"""

import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peers
from pinjax.models import hash_embedding, itemsage

PRODUCTS, IMAGES, IMAGE_DIM, TEXTS, TOKENS = 512, 20, 256, 12, 60
VOCABULARY = 200_000 + 1_000_000 + 64_000
REPEATS = 11

MODEL = itemsage.ItemSage(
    image_slots=IMAGES,
    text_features=tuple((f"text_{i}", str(i)) for i in range(TEXTS)),
    num_tokens=VOCABULARY,
    token_buckets=100_000,
    token_dim=256,
    width=512,
    embedding_dim=256,
    layers=1,
    heads=8,
)


def make_inputs(rng):
    """Products with 1 to 20 images, and tokens of Zipf's frequencies in random texts."""
    images = rng.standard_normal((PRODUCTS, IMAGES, IMAGE_DIM), np.float32)
    image_mask = np.arange(IMAGES) < rng.integers(1, IMAGES + 1, (PRODUCTS, 1))
    tokens = np.minimum(rng.zipf(1.1, PRODUCTS * TOKENS), VOCABULARY) - 1
    segments = np.sort(rng.integers(0, PRODUCTS * TEXTS, len(tokens)))
    return images, image_mask, tokens.astype(np.int32), segments.astype(np.int32)


def in_pytorch(params):
    """A tree of pinjax's parameters, or of their gradients, under PyTorch's names and shapes."""
    params = jax.tree.map(np.asarray, params["params"])
    block, head = params["block_0"], params["head"]
    width = MODEL.width
    query, key, value, out = (
        kernel.reshape(width, width)
        for kernel in (
            *(block["query"]["kernel"], block["key"], block["value"]),
            block["attention_out"]["kernel"],
        )
    )
    no_key_bias = np.zeros(width, np.float32)  # it has neither an effect nor a gradient
    biases = block["query"]["bias"].ravel(), no_key_bias, block["value_bias"].ravel()
    named = {
        "table.weight": params["text"]["embedding"],
        "importance.weight": params["text"]["importance"],
        "cls": params["cls"],
        "block.self_attn.in_proj_weight": np.concatenate([query.T, key.T, value.T]),
        "block.self_attn.in_proj_bias": np.concatenate(biases),
        "block.self_attn.out_proj.weight": out.T,
        "block.self_attn.out_proj.bias": block["attention_out"]["bias"],
    }
    layers = {"image_map": params["image_image"]}
    layers |= {f"text_maps.{i}": params[f"text_{i}"] for i in range(TEXTS)}
    layers |= {"block.linear1": block["ffn_in"], "block.linear2": block["ffn_out"]}
    layers |= {"head.0": head["hidden"], "head.2": head["out"]}
    norms = {"block.norm1": block["attention_norm"], "block.norm2": block["ffn_norm"]}
    norms |= {"norm": params["norm"]}
    for name, layer in layers.items():
        named |= {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}
    for name, norm in norms.items():
        named |= {f"{name}.weight": norm["scale"], f"{name}.bias": norm["bias"]}
    return named


def save(path, params, inputs, towards):
    """What pytorch_itemsage.py reads; the hashing is done for it."""
    images, image_mask, tokens, segments = inputs
    hashes = hash_embedding.hash_ids(jnp.asarray(tokens))
    np.savez(
        path,
        images=images,
        image_mask=image_mask,
        tokens=np.asarray(tokens, np.int64),
        rows=np.asarray(hashes % MODEL.token_buckets, np.int64),
        offsets=np.searchsorted(np.asarray(segments), np.arange(PRODUCTS * TEXTS)),
        texts=TEXTS,
        heads=MODEL.heads,
        towards=towards,
        **{f"weight.{name}": x for name, x in in_pytorch(params).items()},
    )


def compile_step(*arguments):
    """(params, inputs, towards) -> gradients of the sum of products with `towards`; embeddings."""

    def loss(params, inputs, towards):
        embeddings = MODEL.apply(params, *inputs)
        return (embeddings * towards).sum(), embeddings

    return jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile()


def main(python=".venv-peers/bin/python"):
    rng = np.random.default_rng(0)
    inputs = jax.device_put(make_inputs(rng))
    towards = rng.standard_normal((PRODUCTS, MODEL.dim), np.float32)
    params = jax.jit(MODEL.init)(jax.random.key(0), *inputs)
    step = compile_step(params, inputs, towards)
    gradients, embeddings = step(params, inputs, towards)

    def seconds():
        start = time.perf_counter()
        jax.block_until_ready(step(params, inputs, towards))
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as directory:
        source, target = (pathlib.Path(directory, name) for name in ("in.npz", "out.npz"))
        save(source, params, inputs, towards)
        with peers.Peer(python, "pytorch_itemsage.py", source, target) as peer:
            peer.ask()  # a step that warms it up
            timers = {"pinjax": seconds, "PyTorch": lambda: float(peer.ask())}
            times = peers.in_turn(timers, REPEATS)
        with np.load(target) as file:
            theirs = dict(file)

    ours = {f"gradient.{name}": x for name, x in in_pytorch(gradients).items()}
    ours["embeddings"] = np.asarray(embeddings)
    print(f"{PRODUCTS} products, published size, float32, forward and backward, CPU, ", end="")
    print(f"median of {REPEATS} (least to most)")
    for name, seconds in times.items():
        print(f"{name:8} {statistics.median(seconds):6.2f} s", end="")
        print(f" ({min(seconds):.2f} to {max(seconds):.2f})")
    ratio = statistics.median(times["PyTorch"]) / statistics.median(times["pinjax"])
    print(f"{'ratio':8} {ratio:6.2f}")
    difference = max(peers.relative_differences(ours, theirs).values())
    print(f"largest relative difference of embeddings and gradients: {difference:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
