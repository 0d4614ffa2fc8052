"""Compiles a system for devices, local or not, and reports its memory and cost on each.

    python -m pinjax.compile --config=configs/pinnerformer.py:paper --topology=v5e:4x4

It compiles the real train step, the embedding functions and the search, from shapes alone: only the
sizes of a data set are read, and pinworld is not simulated. A topology is a slice of TPUs
(v5e:4x4, v5p:2x2x4, v6e:8x8, tpu7x:2x2x4); without one the target is the local devices.

The estimate of a step's time is a bound from the chip's published rates: no step is faster.
"""

import json
import operator
from collections.abc import Sequence

import tqdm
from absl import flags
from ml_collections import ConfigDict

from pinjax import app, config_flag, settings
from pinjax.compiler import largest_batch, programs, rates, report, topology
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry

CONFIG = app.run_config()
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "slice of TPUs, as v5e:4x4; default: the devices at hand"
)
ITEMS = flags.DEFINE_integer(
    "items",
    None,
    "items of the catalogue; default: those of the data set",
    lower_bound=1,
    upper_bound=settings.INT32,
)
LARGEST = flags.DEFINE_bool(
    "largest_batch", False, "find the largest batch that fits: up to four more compilations"
)
JSON = flags.DEFINE_bool("json", False, "print JSON")


def main(argv: Sequence[str]) -> int:
    del argv
    config, devices = CONFIG.value, topology.devices(TOPOLOGY.value)
    mesh, chip = sharding.mesh_of(config, devices), rates.of(devices)
    if LARGEST.value and not chip:
        raise InputError(f"--largest_batch: the memory of a {devices[0].device_kind} is not known")
    trainable = registry.build(config, mesh, ITEMS.value)
    registry.check_trained(config, trainable)
    field = trainable.batch_size
    size, advice = operator.attrgetter(field)(config), _advice(config, field)
    steps = [
        programs.train_step(trainable, config.train, mesh),
        *programs.others(trainable, config.train, mesh),
    ]
    for step in steps if chip else ():
        programs.check_arguments(step, chip, advice)
    progress = tqdm.tqdm(steps, "compiling", unit="program", disable=None)  # on a terminal alone
    reports = {step.name: programs.measure(step, chip, advice) for step in progress}
    found = None
    if LARGEST.value:
        found = largest_batch.find(
            config, mesh, ITEMS.value, chip, (field, size), reports["train step"].peak
        )

    parts = mesh.shape["data"]
    about = {
        "config": config_flag.source(),
        "devices": f"{mesh.size} x {chip.name if chip else devices[0].device_kind}",
        "mesh": dict(mesh.shape),
        "batch": f"{field}={size}, {size // parts} on each device",
    }
    if trainable.batch_form:
        about["packed"] = trainable.batch_form
    if JSON.value:
        about |= {"largest batch": found, "programs": report.as_json(reports)}
        print(json.dumps(about, indent=2))
        return 0
    trained = reports["train step"]
    print("\n".join(f"{name:<9}{value}" for name, value in about.items()))
    print(f"\n{report.table(reports, chip)}\n\n{report.collectives(trained)}")
    if trained.unknown_loops:
        print(f"\n{trained.unknown_loops} loops of unknown length are left out, which may not run")
    if found:
        print(f"\nthe largest batch that fits: {field}={found}, {found // parts} on each device")
    if trained.roofline:
        print(f"\na step at best\n{trained.roofline.formula()}")
    return 0


def _advice(config: ConfigDict, field: str) -> str:
    """The names of the fields that determine the memory."""
    fields = [f"a smaller --config.{field}"]
    if "remat" in config.model and not config.model.remat:
        fields.append("--config.model.remat=True")
    return ", ".join([*fields, "fewer --items, or more chips"])


if __name__ == "__main__":
    app.run(main, uses_devices=lambda: TOPOLOGY.value is None)
