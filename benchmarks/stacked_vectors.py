"""PinnerFormer on PinSage's vectors against PinnerFormer on the data set's own, and PinnerSage.

    python -m benchmarks.stacked_vectors --vectors=STACK/pinsage/embeddings --workdir=DIR

For each seed the two models and, on the same labels, PinnerSage with its oracles: Recall@10 and the
paired difference to the model on the data set's own vectors, whose intervals are over users. A run
that is finished in --workdir is not made again.
"""

import pathlib

from absl import app, flags

from benchmarks import runs
from pinjax.evaluation import comparison, formatting

_VECTORS = flags.DEFINE_string("vectors", None, "of pinjax.embed, of any system", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_DATA = flags.DEFINE_string("data", "pinworld/small", "data set of the vectors")
_VARIANT = flags.DEFINE_string("variant", "", "of both configs, as ifdb")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every run")


def main(_):
    workdir, common = pathlib.Path(_WORKDIR.value), (f"--config.data.name={_DATA.value}",)
    vectors = f"--config.data.vectors={_VECTORS.value}"
    variant = f":{_VARIANT.value}" if _VARIANT.value else ""
    sage = workdir / "pinnersage"
    if not runs.is_finished(sage):
        runs.call("evaluate", f"configs/pinnersage.py{variant}", sage, *common)
    for seed in range(_SEEDS.value):
        found = {}
        for name, more in (("own vectors", ()), ("given vectors", (vectors,))):
            made = workdir / runs.directory(name, seed)
            of_seed = f"--config.train.seed={seed}", *common, *more
            runs.train(f"configs/pinnerformer.py{variant}", made, *of_seed)
            found[name] = runs.records(made)
        found["PinnerSage"] = runs.records(sage)
        print(f"\nseed {seed}\n{formatting.format_table(comparison.rows(found))}", flush=True)


if __name__ == "__main__":
    app.run(main)
