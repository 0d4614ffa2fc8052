"""Count-min sketches of several sizes against exact counts.

    python -m benchmarks.sketch [--data_dir=~/.cache/pinjax]

For items with Zipf frequencies and for the pairs of pinworld/small, epoch after epoch, it prints
how much too high an id's log P is, which the sampled softmax subtracts: the median and the 95th
percentile over the stream. Beside them is the error bound that a run prints. A run is refused if
the bound is above the median count of an id over the stream. Takes half a minute.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pinjax.data import dataset
from pinjax.losses import count_min_sketch

DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld is, or will be")

DEPTH = 4
BATCH = 2**16


def main(argv):
    del argv
    rng = np.random.default_rng(0)
    items = 1 / np.arange(1, 200_001)
    zipf = rng.choice(len(items), 4_000_000, p=items / items.sum())
    show("4,000,000 labels of 200,000 items with Zipf frequencies", zipf)
    train = dataset.load("pinworld/small", DATA_DIR.value).pairs("train")
    pairs = count_min_sketch.pair_ids(jnp.asarray(train["query"]), jnp.asarray(train["item"]))
    show("4 epochs of pinworld/small's pairs", np.tile(pairs, 4))


def show(name, ids):
    ids = np.asarray(ids, np.int32)
    known, counts = np.unique(ids, return_counts=True)
    print(f"\n{name}: {len(known):,} different ones, counted {counts.mean():,.1f} times on average")
    print(f"{'width':>10}{'width/ids':>11}{'MiB':>7}{'error':>10}{'error/median':>14}", end="")
    print(f"{'median':>9}{'95 %':>9}{'above the error':>17}")
    least = math.ceil(math.log2(len(known)))
    for width in 2 ** np.arange(least - 4, min(least + 3, 25) + 1):
        accuracy = count_min_sketch.accuracy(width, 1.0, len(ids), 1, counts)
        sketch = counted(ids, int(width))
        found = np.asarray(count_min_sketch.count(sketch, jnp.asarray(known)), np.int64)
        above = np.repeat(np.log(found / counts), counts)
        median, high = np.percentile(above, [50, 95])
        print(f"{width:10,}{width / len(known):11.2f}{4 * DEPTH * width / 2**20:7,.0f}", end="")
        print(f"{accuracy.error:10,.1f}{accuracy.error / accuracy.median:14.2f}", end="")
        print(f"{median:9.3f}{high:9.3f}{(found - counts > accuracy.error).mean():17.4f}")


def counted(ids, width):
    """A sketch of all ids, added a batch at a time."""
    add = jax.jit(count_min_sketch.add, donate_argnums=0)
    sketch = count_min_sketch.init(jax.random.key(0), DEPTH, width)
    full = len(ids) // BATCH * BATCH
    for batch in (*ids[:full].reshape(-1, BATCH), ids[full:]):
        sketch = add(sketch, jnp.asarray(batch))
    assert int(sketch.total) == len(ids)
    return sketch


if __name__ == "__main__":
    app.run(main)
