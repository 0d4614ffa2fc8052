"""Exports a trained run, for a service that has neither its data set nor what training needs.

    python -m pinjax.export --workdir=work/pinnerformer --out=exports/pinnerformer

The directory holds the towers, compiled by JAX for CPUs, NVIDIA's GPUs and TPUs alike and for any
number of rows; the parameters as safetensors; the features, vocabularies and ids that turn what a
service knows into their inputs; a manifest and checksums. `pinjax.serving.exported.load` reads it.
Of PinnerFormer users and items can be embedded, of ItemSage products, of SearchSage searches, of
PinSage groups of items. docs/serve.md has a service.
"""

import datetime
import json
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from pinjax import app, checksums, timestamps
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.serving import exporting
from pinjax.systems import registry
from pinjax.training import checkpoint, identity

WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run", required=True)
OUT = flags.DEFINE_string("out", None, "directory to write to", required=True)
AS_OF = flags.DEFINE_string(
    "as_of", None, "time of the items' popularity: ISO 8601, UTC; default: the end of training"
)
flags.DEFINE_bool("no_verify", False, "do not verify the checksums of files that are read")


def main(argv: Sequence[str]) -> int:
    del argv
    workdir, out = app.directory("--workdir", WORKDIR.value), app.directory("--out", OUT.value)
    config, mesh = _config(workdir), sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh, app.verifies())
    if system.export is None:
        raise InputError(f"system={config.system!r} has nothing to export: embed by it")
    state = checkpoint.load_chosen(workdir, config, system, mesh, app.verifies())
    as_of = system.embed_as_of
    if AS_OF.value is not None:
        as_of = timestamps.parse("--as_of", AS_OF.value)
    about = {
        "system": config.system,
        **identity.of_state(config, system, state),
        "as_of": datetime.datetime.fromtimestamp(as_of, datetime.UTC).isoformat(),
        "settings": json.loads(config.to_json()),
    }
    made = exporting.write(out, config, system, state.params, as_of, about)
    embeds = ", ".join(made.programs) or "nothing but a lookup of items"
    print(f"{out}: embeds {embeds}, step {about['step']:,}")
    print(f'python -c "from pinjax.serving import exported; exported.load({str(out)!r})"')
    return 0


def _config(workdir: epath.Path) -> ConfigDict:
    """The config of the run in a directory, for one device."""
    path = workdir / "run.json"
    if not path.exists():
        raise InputError(
            f"{workdir} holds no trained run; of a system without training, as PinnerSage, there "
            "is nothing to export: embed by it"
        )

    def plain(value):
        if isinstance(value, dict):
            return {name: plain(field) for name, field in value.items()}
        return tuple(map(plain, value)) if isinstance(value, list) else value

    config = ConfigDict(plain(checksums.read(path)["config"]))
    config.train.model_devices = 1
    return config


if __name__ == "__main__":
    app.run(main)
