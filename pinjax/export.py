"""Exports a trained run, for a service that has neither its data set nor what training needs.

    python -m pinjax.export --workdir=work/pinnerformer --out=exports/pinnerformer

The directory holds the towers as programs of jax.export, for CPUs, NVIDIA's GPUs and TPUs and any
number of rows; the parameters as safetensors; the features, vocabularies and ids that turn what a
service knows into their inputs; a manifest and checksums. `pinjax.serving.exported.load` reads it.
PinnerFormer embeds users and items, ItemSage products, SearchSage searches, PinSage groups of
items. docs/serve.md has a service.
"""

import shlex
from collections.abc import Sequence

from absl import flags

from pinjax import app, config_json, timestamps
from pinjax.serving import exporting
from pinjax.serving import run as run_lib
from pinjax.training import checkpoint

CONFIG, WORKDIR = app.run_flags(config_required=False)
OUT = flags.DEFINE_string("out", None, "directory to write to", required=True)
AS_OF = app.as_of_flag("time of the items' popularity")


def main(argv: Sequence[str]) -> int:
    del argv
    out = app.local_directory("--out", OUT.value)
    as_of = app.as_of_value(AS_OF)
    config, workdir = app.run_of(CONFIG, WORKDIR)
    run = run_lib.create(config, workdir, as_of, app.verifies())
    system = run.system
    about = {
        "system": config.system,
        **checkpoint.identity(config, system, run.trained, run.step),
        "as_of": timestamps.iso(run.as_of),
        "settings": config_json.to_json(config),
    }
    made = exporting.write(out, config, system, run.params, run.as_of, about)
    embeds = ", ".join(made.programs) or "nothing, but has vectors of items"
    print(f"{out}: embeds {embeds}, as of {about['as_of']}, step {run.step:,}")
    if "users" in made.programs:
        print(f"EXPORT={shlex.quote(str(out))} uvicorn pinjax.serving.service:app")
    return 0


if __name__ == "__main__":
    app.run(main)
