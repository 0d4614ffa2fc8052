"""What each option beyond the PinnerFormer paper brings, on pinworld and on three real logs.

    python -m benchmarks.options --data=DIR --workdir=DIR [--sets=pinworld,ifdb,globo,ml1m]

Every option is added on its own to a model with none of them, with three seeds. Sizes and labels
are the set's config's, steps are fewer. It takes hours; a run that is finished in --workdir is not
made again, so it can be interrupted.

Recall@10 is over test users; nothing is chosen by it. An option helps if every seed is ahead of the
same seed without it, and the mean difference is more than half the range over seeds.
"""

import pathlib
import statistics

from absl import app, flags

from benchmarks import real_sets, runs

_DATA = flags.DEFINE_string("data", None, "directory of the raw logs; pinworld needs none")
_WORKDIR = flags.DEFINE_string("workdir", None, "where data sets and runs are kept", required=True)
_SETS = flags.DEFINE_list("sets", ["pinworld", "ifdb", "globo", "ml1m"], "which sets")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every row")

# By set: the variant of the config, and what a shorter run needs.
SETS = {
    "pinworld": ("own", ("train.steps=300", "train.warmup_steps=50", "train.evaluate_every=0")),
    "ifdb": ("ifdb", ("train.steps=150", "train.evaluate_every=50")),
    "globo": ("globo", ("train.steps=400", "train.evaluate_every=200")),
    "ml1m": ("ml1m", ("train.steps=600", "train.evaluate_every=300")),
}
OFF = (
    *("model.history_sums=False", "model.gated_layers=0", "data.pca_dim=0"),
    *("model.scaled_attention=False", "model.divided_time=False"),
    *("data.popularity_window=0", "objective.last_action_share=0.0", "loss.equal_labels=False"),
)
OPTIONS = {
    "learned ids": ("model.id_dim=64",),
    "history sums": ("model.history_sums=True",),
    "gated layers": ("model.gated_layers=2",),
    "PCA": ("data.pca_dim=24",),
    "popularity": ("data.popularity_window=7257600",),
    "request time": (),  # a feature beside the set's own
    "last actions": ("objective.last_action_share=0.7",),
    "equal labels": ("loss.equal_labels=True",),
    "scaled attention": ("model.scaled_attention=True",),
    "divided time": ("model.divided_time=True",),
}
FEATURES = {  # of the set's config, without the request time
    "pinworld": ("item", "action", "surface", "duration", "time"),
    "ifdb": ("item", "action", "time"),
    "globo": ("item", "surface", "time"),
    "ml1m": ("item",),
}
NOT_FOR = {  # without meaning there: items have no content, actions no times
    "pinworld": (),
    "ifdb": (),
    "globo": ("learned ids", "gated layers", "PCA", "popularity"),
    "ml1m": (
        *("learned ids", "gated layers", "PCA", "popularity"),
        *("history sums", "request time", "divided time"),
    ),
}


def main(_):
    for name in _SETS.value:
        workdir = pathlib.Path(_WORKDIR.value) / name
        workdir.mkdir(parents=True, exist_ok=True)
        directory = ""
        if name != "pinworld":
            log = {"ml1m": "movielens_1m"}.get(name, name)
            directory = str(
                real_sets.prepare_log(log, pathlib.Path(_DATA.value), workdir).directory
            )
        options = {"the paper's": ()} | OPTIONS
        recalls = {
            option: [
                _recall(name, directory, option, settings, seed) for seed in range(_SEEDS.value)
            ]
            for option, settings in options.items()
            if option not in NOT_FOR[name]
        }
        base = recalls.pop("the paper's")
        print(f"\n{name}, Recall@10, mean of {_SEEDS.value} seeds and half their range")
        print(f"{'the paper alone':<20}{runs.mean_and_range(base):>18}")
        for option, found in recalls.items():
            more = [a - b for a, b in zip(found, base, strict=True)]
            spread = (max(more) - min(more)) / 2
            helps = min(more) > 0 and statistics.mean(more) > spread
            verdict = "helps" if helps else "hurts" if max(more) < 0 else "no finding"
            print(
                f"{option:<20}{runs.mean_and_range(found):>18}{runs.mean_and_range(more):>18}  "
                f"{verdict}"
            )


def _recall(name: str, directory: str, option: str, settings: tuple[str, ...], seed: int) -> float:
    """Of a run, made if it is not there."""
    variant, shorter = SETS[name]
    features = FEATURES[name] + (("request_time",) if option == "request time" else ())
    own = ("model.id_dim=0",) if name in ("pinworld", "ifdb") else ()
    fields = (*OFF, *own, *shorter, f"model.features={features}", f"train.seed={seed}")
    fields += ("evaluate.cadences=('window',)", *settings)
    if directory:
        fields += (f"data.name={directory}",)
    rows = runs.train(
        f"configs/pinnerformer.py:{variant}",
        pathlib.Path(_WORKDIR.value) / name / runs.directory(option, seed),
        *(f"--config.{field}" for field in fields),
    )
    return rows["PinnerFormer"]["R@10"].value


if __name__ == "__main__":
    app.run(main)
