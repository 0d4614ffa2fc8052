"""A work directory belongs to one run, which its run.json names, and has files of fixed names."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums, config_json, files
from pinjax.errors import InputError

RUN_FILE, METRICS_FILE = "run.json", "metrics.jsonl"
# Fields that may differ between the calls of one run: they change parameters by rounding, or as
# another number of devices does. What is in `data.vectors` is part of a system's identity, and so
# is the digest of `data.name`.
_FREE = (
    "evaluate.",
    "data.dir",
    "data.vectors",
    "data.workers",
    "train.log_every",
    "train.model_devices",
    "train.shard",
    "train.shard_optimizer",
)


def results_file(split: str) -> str:
    """The name of the file with the table of results of a split."""
    return f"results_{split}.json"


def records_file(split: str) -> str:
    """The name of the file with the ranks of all labels of a split."""
    return f"records_{split}.parquet"


def write(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Records in `workdir` which run it belongs to."""
    files.make_directory(workdir)
    files.write_json(epath.Path(workdir) / RUN_FILE, _run(config, identity))


def claim(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Records in `workdir` which run it belongs to, or checks it if it belongs to one.

    Raises:
      InputError: as `check`.
    """
    if (epath.Path(workdir) / RUN_FILE).exists():
        check(workdir, config, identity)
    else:
        write(workdir, config, identity)


def check(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Checks that `workdir` belongs to a run.

    Raises:
      InputError: if it holds no run, or a run of another config, data set or frozen table.
    """
    old, new = config_json.flat(_read(workdir)), config_json.flat(_run(config, identity))
    moved = {"config.data.name"} if old.get("dataset") == new.get("dataset") else set()
    names = sorted((old.keys() | new.keys()) - moved)
    bound = [name for name in names if not _is_free(name.removeprefix("config."))]
    if different := config_json.first_difference(old, new, bound):
        name, before, now = different
        name = name.removeprefix("config.")
        raise InputError(
            f"{workdir} holds a run with {name}={before}, this one has {name}={now}; choose "
            "another --workdir"
        )


def config_of(workdir: epath.PathLike) -> ConfigDict:
    """The config of the run in a work directory, for the devices at hand.

    A run may have been trained on more of them: `train.model_devices` is 1 if it does not divide
    their number.

    Raises:
      InputError: if it holds no run.
    """
    config = config_json.from_json(_read(workdir)["config"])
    if "train" in config and jax.device_count() % config.train.model_devices:
        config.train.model_devices = 1
    return config


def identity_of(workdir: epath.PathLike) -> dict[str, str]:
    """The identity of the run in a work directory, as of `System.identity`.

    Raises:
      InputError: if it holds no run.
    """
    content = _read(workdir)
    return {name: value for name, value in content.items() if name != "config"}


def served_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields, by name, that matter to a trained model on any state of its log."""
    return {
        name: value
        for name, value in config_json.flat(config_json.to_json(config)).items()
        if not (_is_free(name) or name == "data.name" or name.startswith("train."))
    }


def _read(workdir: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(workdir) / RUN_FILE
    if not path.exists():
        raise InputError(f"{workdir} holds no run; train one with --workdir={workdir}")
    return checksums.read(path)


def _run(config: ConfigDict, identity: Mapping[str, str]) -> dict[str, Any]:
    return {"config": config_json.to_json(config), **identity}


def _is_free(field: str) -> bool:
    return any(field == free or (free.endswith(".") and field.startswith(free)) for free in _FREE)
