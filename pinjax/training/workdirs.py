"""A work directory belongs to one run, which its run.json names."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums, config_json, files
from pinjax.errors import InputError

_RUN_FILE = "run.json"
# Fields that may differ between the calls of one run: they change parameters only by rounding. What
# is in `data.vectors` is part of a system's identity, and so is the digest of `data.name`.
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


def write(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Records in `workdir` which run it belongs to."""
    files.make_directory(workdir)
    with files.replacing(epath.Path(workdir) / _RUN_FILE) as file:
        file.write(checksums.dump(_run(config, identity)).encode())


def check(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Checks that `workdir` belongs to a run.

    Raises:
      InputError: if it holds no run, or a run of another config, data set or frozen table.
    """
    old, new = _flatten(_read(workdir)), _flatten(_run(config, identity))
    moved = {"config.data.name"} if old.get("dataset") == new.get("dataset") else set()
    for name in sorted((old.keys() | new.keys()) - moved):
        short = name.removeprefix("config.")
        if old.get(name) != new.get(name) and not _is_free(short):
            raise InputError(
                f"{workdir} holds a run with {short}={old.get(name)}, this one has "
                f"{short}={new.get(name)}; choose another --workdir"
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


def depends_on(config: ConfigDict) -> dict[str, Any]:
    """The config fields that the parameters depend on, by name."""
    return {
        name: value
        for name, value in _flatten(config_json.to_json(config)).items()
        if not _is_free(name)
    }


def _read(workdir: epath.PathLike) -> dict[str, Any]:
    path = epath.Path(workdir) / _RUN_FILE
    if not path.exists():
        raise InputError(f"{workdir} holds no run; train one with --workdir={workdir}")
    return checksums.read(path)


def _run(config: ConfigDict, identity: Mapping[str, str]) -> dict[str, Any]:
    return {"config": config_json.to_json(config), **identity}


def _is_free(field: str) -> bool:
    return any(field == free or (free.endswith(".") and field.startswith(free)) for free in _FREE)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
