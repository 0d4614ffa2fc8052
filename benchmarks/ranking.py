"""What do embeddings add to a ranking model? PinnerFormer's, on pinworld, ifdb and kuairand.

    python -m benchmarks.ranking --workdir=DIR --data=pinworld/small --config=pinnerformer.py
    python -m benchmarks.ranking --workdir=DIR --data=DIR --config=pinnerformer.py:kuairand
    python -m benchmarks.ranking --workdir=DIR --data=DIR --config=pinnerformer.py:ifdb \
        --days=182 --times=7

PinnerFormer is trained with each seed, embeds users as of the end of training and --times - 1 later
times --days apart, and is ranked with by three seeds of the ranking model (docs/rank.md). The
figures are means over the seeds of PinnerFormer, and half of their range. Training takes minutes, a
ranking model on a log with sampled items some more; a run that is finished in --workdir is not made
again.
"""

import json
import pathlib

from absl import app, flags

from benchmarks import runs
from pinjax import timestamps
from pinjax.data import dataset
from pinjax.timestamps import DAY

_WORKDIR = flags.DEFINE_string("workdir", None, "where the runs are kept", required=True)
_DATA = flags.DEFINE_string("data", None, "a data set", required=True)
_CONFIG = flags.DEFINE_string("config", None, "in configs/", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld/small is kept")
_SEEDS = flags.DEFINE_integer("seeds", 3, "of PinnerFormer")
_TIMES = flags.DEFINE_integer("times", 1, "as of which users are embedded")
_DAYS = flags.DEFINE_integer("days", 7, "between them")


def main(_):
    train_end = dataset.load(_DATA.value, _DATA_DIR.value).spec.train_end
    times = [train_end + n * _DAYS.value * DAY for n in range(_TIMES.value)]
    found = [_results(seed, times) for seed in range(_SEEDS.value)]
    for metric, methods in found[0].items():
        print(f"\n{metric}")
        for method, of_method in methods.items():
            for kind in ("value", "lift"):
                if kind in of_method:
                    cells = [
                        f"{type_} {_mean([x[metric][method][kind][type_][0] for x in found])}"
                        for type_ in of_method[kind]
                    ]
                    print(f"{method:<24}{kind:<7}{'  '.join(cells)}")


def _results(seed: int, times: list[int]) -> dict:
    """The content of rank.json, with the run's rows named PinnerFormer."""
    name = pathlib.Path(_DATA.value).name.replace("/", "-")
    workdir = pathlib.Path(_WORKDIR.value, f"{name}-{seed}")
    config = f"configs/{_CONFIG.value}"
    data = f"--config.data.name={_DATA.value}", f"--config.data.dir={_DATA_DIR.value}"
    settings = *data, f"--config.train.seed={seed}"
    runs.train(config, workdir, *settings)
    directories = []
    for time in times:
        as_of = timestamps.iso(time)
        directories.append(f"{workdir}/as-of-{as_of[:10]}")
        flags_ = f"--as_of={as_of}", f"--out={directories[-1]}"
        runs.call("embed", config, workdir, *settings, *flags_)
    runs.call("rank", config, workdir, *settings, f"--embeddings={','.join(directories)}")
    content = json.loads((workdir / "rank.json").read_text())
    own = list(content["AUC"])[-1]
    return {
        metric: {"PinnerFormer" if name == own else name: x for name, x in methods.items()}
        for metric, methods in content.items()
    }


def _mean(values: list[float | None]) -> str:
    return "-" if None in values else runs.mean_and_range(values)


if __name__ == "__main__":
    app.run(main)
