"""Do the directions of ItemSage's ablations hold on pinworld? Each row has three seeds.

    python -m benchmarks.itemsage_directions --workdir=DIR

A run that is finished in DIR is not made again. The directions are ItemSage's (Baltescu et al., KDD
2022): encoders, features, terms of the loss, and one task or all of them.
"""

import itertools
import pathlib

from absl import app, flags

from benchmarks import runs

_WORKDIR = flags.DEFINE_string("workdir", None, "where the runs are kept", required=True)
_STEPS = flags.DEFINE_integer("steps", 500, "of every run")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every row")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld/small is kept")

CONFIG = "configs/itemsage.py"
DENSE, SPARSE = ("image/click", "text/click"), ("image/checkout", "text/checkout")

DEFAULT = "all"
METHODS = {
    DEFAULT: (),
    "encoder mlp_concat_mlp": ("--config.model.encoder=mlp_concat_mlp",),
    "encoder sum": ("--config.model.encoder=sum",),
    "images only": ("--config.model.texts=()",),
    "texts only": ("--config.model.image_slots=0",),
    "L_pos only": ("--config.loss.terms=in_batch",),
    "L_neg only": ("--config.loss.terms=random",),
    "joined": ("--config.loss.terms=joined",),
    "no logQ": ("--config.loss.log_q=False",),
}


def main(_):
    results = {
        method: [_run(method, seed, settings) for seed in range(_SEEDS.value)]
        for method, settings in METHODS.items()
    }
    for task in (*DENSE, *SPARSE):
        # A run on a single task is measured on that task, which its table's first row has.
        settings = (f"--config.tasks=(('{task}', 1.0, 0),)",)
        results[f"{task} only"] = [_run(f"{task} only", s, settings) for s in range(_SEEDS.value)]

    def recall(method: str, row: str = "ItemSage") -> list[float]:
        return [rows[row]["R@10"][0] for rows in results[method]]

    print(f"{'':<28}{'R@10':>20}")
    for method in results:
        print(f"{method:<28}{runs.mean_and_range(recall(method)):>20}")
    print()
    ladder = (DEFAULT, "encoder mlp_concat_mlp", "encoder sum")
    for better, worse in itertools.pairwise(ladder):
        runs.claim(f"{better} > {worse}", recall(better), recall(worse))
    for other in METHODS:
        if other not in ladder:
            runs.claim(f"{DEFAULT} > {other}", recall(DEFAULT), recall(other))
    for task in (*DENSE, *SPARSE):
        together, alone = recall(DEFAULT, f"ItemSage, {task}"), recall(f"{task} only")
        runs.claim(f"{task}: all tasks > this one only", together, alone)


def _run(method: str, seed: int, settings: tuple[str, ...]) -> runs.Rows:
    return runs.train(
        CONFIG,
        pathlib.Path(_WORKDIR.value, runs.directory(method, seed)),
        *(f"--config.train.seed={seed}", f"--config.train.steps={_STEPS.value}"),
        *("--config.train.evaluate_every=0", f"--config.data.dir={_DATA_DIR.value}"),
        "--config.evaluate.queries=1000000",  # all: those of one task are a part of them
        *settings,
    )


if __name__ == "__main__":
    app.run(main)
