"""Do the paper's directions hold on pinworld? Every row is trained with three seeds.

    python -m benchmarks.directions --workdir=DIR

It takes hours; a run that is finished in DIR is not made again, so it can be interrupted. The
directions are PinnerFormer's (Pancha et al., KDD 2022): logQ and negatives, objectives, and the
loss when embeddings are computed once a window instead of in real time.
"""

import itertools
import pathlib

from absl import app, flags

from benchmarks import runs

_WORKDIR = flags.DEFINE_string("workdir", None, "where the runs are kept", required=True)
_STEPS = flags.DEFINE_integer("steps", 500, "of every run")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every row")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld/small is kept")

_IN_BATCH, _RANDOM = 1_024, 2_048
_SIZES = {"random": (0, _RANDOM), "in-batch": (_IN_BATCH, 0), "mixed": (_IN_BATCH, _RANDOM)}
NEGATIVES = {
    f"{'logQ' if log_q else 'no logQ'}, {kind}": (
        f"--config.loss.log_q={log_q}",
        f"--config.loss.num_in_batch_negatives={in_batch}",
        f"--config.loss.num_random_negatives={random}",
    )
    for log_q in (False, True)
    for kind, (in_batch, random) in _SIZES.items()
}
DEFAULT = "logQ, mixed"
OBJECTIVES = {
    "next_action": ("--config.objective.name=next_action",),
    # Windows end where those of SASRec's authors do.
    "sasrec": ("--config.objective.name=sasrec", "--config.objective.last_action_share=1.0"),
    "all_action": ("--config.objective.name=all_action",),
}


def main(_):
    results = {
        method: [_run(method, seed, settings) for seed in range(_SEEDS.value)]
        for method, settings in (NEGATIVES | OBJECTIVES).items()
    }
    results["dense_all_action"] = results[DEFAULT]
    once, live = "PinnerFormer", "PinnerFormer, real time"
    recall = {m: [rows[once]["R@10"][0] for rows in seeds] for m, seeds in results.items()}
    coverage = {m: [rows[once]["P90 cov@10"][0] for rows in seeds] for m, seeds in results.items()}
    drop = {
        m: [1 - rows[once]["R@10"][0] / rows[live]["R@10"][0] for rows in seeds]
        for m, seeds in results.items()
    }
    print(f"{'':<24}{'R@10':>18}{'P90 cov@10':>18}{'drop from live':>18}")
    for method in results:
        cells = "".join(f"{runs.mean_and_range(x[method]):>18}" for x in (recall, coverage, drop))
        print(f"{method:<24}{cells}")

    print()
    for other in NEGATIVES:
        if other != DEFAULT:
            runs.claim(f"R@10: {DEFAULT} > {other}", recall[DEFAULT], recall[other])
    for other in NEGATIVES:
        if "random" not in other:
            for kind in ("no logQ, random", "logQ, random"):
                runs.claim(f"coverage: {kind} < {other}", coverage[other], coverage[kind])
    ladder = ("dense_all_action", "all_action", "sasrec", "next_action")
    for better, worse in itertools.pairwise(ladder):
        runs.claim(f"R@10: {better} > {worse}", recall[better], recall[worse])
    runs.claim("drop: dense_all_action < sasrec", drop["sasrec"], drop["dense_all_action"])


def _run(method: str, seed: int, settings: tuple[str, ...]) -> runs.Rows:
    return runs.train(
        "configs/pinnerformer.py:small",
        pathlib.Path(_WORKDIR.value, runs.directory(method, seed)),
        *(f"--config.train.seed={seed}", f"--config.train.steps={_STEPS.value}"),
        *("--config.train.evaluate_every=0", f"--config.data.dir={_DATA_DIR.value}"),
        *settings,
    )


if __name__ == "__main__":
    app.run(main)
