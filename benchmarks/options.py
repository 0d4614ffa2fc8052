"""What each option beyond the PinnerFormer paper brings, on pinworld and on four real logs.

    python -m benchmarks.options --data=DIR --workdir=DIR [--sets=ifdb,globo,kuairand,ml1m,pinworld]

Every option is added on its own to a model with none of them, then the options that a log of one's
own could start from together, with three seeds. Sizes and labels are the set's config's, steps are
fewer. It takes hours; a run that is finished in --workdir is not made again, so it can be
interrupted.

Recall@10 is over test users. `:own` and `:own_ids` were chosen by it, by the mean rank over sets
with content and without, so that for them the same users are no test. An option helps if every seed
is ahead of the same seed without it, and the mean difference is more than half the range over
seeds; it hurts if every seed is behind, likewise.
"""

import pathlib
import statistics

from absl import app, flags

from benchmarks import real_sets, runs

_DATA = flags.DEFINE_string("data", None, "directory of the raw logs; pinworld needs none")
_WORKDIR = flags.DEFINE_string("workdir", None, "where data sets and runs are kept", required=True)
_SETS = flags.DEFINE_list("sets", ["ifdb", "globo", "kuairand", "ml1m", "pinworld"], "which sets")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every row")

# By set: the variant of the config, and what a shorter run needs.
SETS = {
    "pinworld": ("pinworld", ()),  # 160 steps
    "ifdb": ("ifdb", ("train.steps=150", "train.evaluate_every=50")),
    "globo": ("globo", ("train.steps=400", "train.evaluate_every=200")),
    "kuairand": ("kuairand", ("train.steps=150", "train.evaluate_every=50")),
    "ml1m": ("ml1m", ("train.steps=200", "train.warmup_steps=50", "train.evaluate_every=200")),
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
STARTS = {  # what a log of one's own could start from
    "the paper alone": (),
    "ids": ("learned ids", "scaled attention", "divided time"),
    "ids, request time": ("learned ids", "request time", "scaled attention", "divided time"),
    "ids, sums and gates": (
        *("learned ids", "history sums", "gated layers", "scaled attention", "divided time"),
    ),
    "the default's": (
        *("history sums", "gated layers", "PCA", "popularity", "request time"),
        *("scaled attention", "divided time"),
    ),
    "without its PCA": (
        *("history sums", "gated layers", "popularity", "request time"),
        *("scaled attention", "divided time"),
    ),
}
FEATURES = {  # of the set's config, without the request time
    "pinworld": ("item", "action", "surface", "duration", "time"),
    "ifdb": ("item", "action", "time"),
    "globo": ("item", "surface", "time"),
    "kuairand": ("item", "action", "duration", "time"),
    "ml1m": ("item",),
}
NOT_FOR = {  # without meaning there: items have no content, actions no times
    "pinworld": (),
    "ifdb": (),
    "globo": ("learned ids", "gated layers", "PCA", "popularity"),
    "kuairand": ("learned ids", "gated layers", "PCA", "popularity"),
    "ml1m": (
        *("learned ids", "gated layers", "PCA", "popularity"),
        *("history sums", "request time", "divided time"),
    ),
}


def main(_):
    starts = {name: _measure(name) for name in _SETS.value}
    for kind, no_content in (("with content", False), ("of ids alone", True)):
        of_kind = [name for name in starts if ("PCA" in NOT_FOR[name]) == no_content]
        if of_kind:
            _print_ranks(f"{kind}: {', '.join(of_kind)}", [starts[name] for name in of_kind])


def _print_ranks(title: str, sets: list[dict[str, float]]) -> None:
    """The mean rank over sets of each start; equal ones share a rank."""
    print(f"\nmean rank over logs {title}")
    for start in STARTS:
        ranks = [
            sum(other > recalls[start] for other in recalls.values())
            + (1 + sum(other == recalls[start] for other in recalls.values())) / 2
            for recalls in sets
        ]
        print(f"{start:<20}{statistics.mean(ranks):>8.2f}")


def _measure(name: str) -> dict[str, float]:
    """Prints a set's table; Recall@10 of what a log could start from, the mean over seeds."""
    workdir = pathlib.Path(_WORKDIR.value) / name
    workdir.mkdir(parents=True, exist_ok=True)
    directory = ""
    if name != "pinworld":
        log = {"ml1m": "movielens_1m"}.get(name, name)
        directory = str(real_sets.prepare_log(log, pathlib.Path(_DATA.value), workdir).directory)

    def recalls(options: tuple[str, ...]) -> list[float]:
        options = tuple(option for option in options if option not in NOT_FOR[name])
        return [_recall(name, directory, options, seed) for seed in range(_SEEDS.value)]

    base = recalls(())
    print(f"\n{name}, Recall@10, mean of {_SEEDS.value} seeds and half their range")
    print(f"{'the paper alone':<20}{runs.mean_and_range(base):>18}", flush=True)
    found = {"the paper alone": base}
    for row, options in ({option: (option,) for option in OPTIONS} | STARTS).items():
        if row in found or set(options) <= set(NOT_FOR[name]):
            continue
        found[row] = recalls(options)
        more = [a - b for a, b in zip(found[row], base, strict=True)]
        spread = (max(more) - min(more)) / 2
        clear = abs(statistics.mean(more)) > spread
        helps, hurts = clear and min(more) > 0, clear and max(more) < 0
        verdict = "helps" if helps else "hurts" if hurts else "no finding"
        print(
            f"{row:<20}{runs.mean_and_range(found[row]):>18}{runs.mean_and_range(more):>18}  "
            f"{verdict}",
            flush=True,
        )
    return {start: statistics.mean(found[start]) for start in STARTS}


def _recall(name: str, directory: str, options: tuple[str, ...], seed: int) -> float:
    """Of a run, made if it is not there."""
    variant, shorter = SETS[name]
    features = FEATURES[name] + (("request_time",) if "request time" in options else ())
    own = ("model.id_dim=0",) if name in ("pinworld", "ifdb") else ()
    fields = (*OFF, *own, *shorter, f"model.features={features}", f"train.seed={seed}")
    fields += ("evaluate.cadences=('window',)",)
    fields += tuple(field for option in options for field in OPTIONS[option])
    if directory:
        fields += (f"data.name={directory}",)
    rows = runs.train(
        f"configs/pinnerformer.py:{variant}",
        pathlib.Path(_WORKDIR.value) / name / runs.directory(", ".join(options) or "paper", seed),
        *(f"--config.{field}" for field in fields),
    )
    return rows["PinnerFormer"]["R@10"].value


if __name__ == "__main__":
    app.run(main)
