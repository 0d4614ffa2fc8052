"""What every `:paper` config takes on slices of TPUs, as the TPU compiler and published rates say.

    python -m benchmarks.slices [--systems=pinnerformer] [--topologies=v5e:4x4,tpu7x:2x2x2]

It needs the TPU compiler, as `python -m pinjax.compile --topology` does, and no TPU. Times are
bounds: nothing is faster. A million users, products, queries or items (of PinSage: through all
layers) cost the time of embedding them, times the slice's chips.
"""

import importlib

import jax
from absl import app, flags

from pinjax.compiler import programs, rates, topology
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry

SYSTEMS = ["pinnerformer", "itemsage", "searchsage", "pinsage"]
TOPOLOGIES = ["v5e:4x4", "v5p:2x2x4", "v6e:4x4", "tpu7x:2x2x2"]  # of 16 devices
_SYSTEMS = flags.DEFINE_list("systems", SYSTEMS, "which systems")
_TOPOLOGIES = flags.DEFINE_list("topologies", TOPOLOGIES, "which slices")

HEAD = "config", "slice", "memory", "step at best", "bound by", "all steps at best", "a million"


def cells(name: str, slice_name: str) -> list[str]:
    """A row of the table."""
    config = importlib.import_module(f"configs.{name}").get_config("paper")
    devices = topology.devices(slice_name)
    chips = len({tuple(device.coords) for device in devices})
    mesh, chip = sharding.mesh_of(config, devices), rates.of(devices)
    trainable = registry.build(config, mesh)
    report = programs.measure(programs.train_step(trainable, config.train, mesh), chip, "")
    bound = report.roofline
    share = bound.seconds["interconnect"] / bound.step
    hours = config.train.steps * bound.step / 3600
    return [
        f"`{name}.py:paper`",
        f"{slice_name}, {chips} chips",
        f"{rates.size(report.peak)} of {rates.size(chip.memory)}",
        f"{1e3 * bound.step:.3g} ms",
        f"{bound.bound} (interconnect {share:.0%})",
        f"{hours:.3g} h, {hours * chips:.3g} chip-hours",
        ", ".join(
            f"{what} {seconds * chips:.3g} chip-seconds"
            for what, seconds in seconds_a_million(trainable, config, mesh, chip).items()
        ),
    ]


def seconds_a_million(trainable, config, mesh, chip) -> dict[str, float]:
    """Seconds to embed a million of each kind at best, by kind."""
    seconds = {}
    for program in programs.others(trainable, config.train, mesh):
        _, _, kind = program.name.partition("embed ")
        if not kind:
            continue  # the search
        rows = jax.eval_shape(program.function, *program.arguments.values()).shape[0]
        step = programs.measure(program, chip, "").roofline.step
        kind = "items" if kind.startswith("layer") else kind
        seconds[kind] = seconds.get(kind, 0.0) + step / rows * 1e6
    return seconds


def main(_):
    for row in (HEAD, ["---"] * len(HEAD)):
        print(f"| {' | '.join(row)} |", flush=True)
    for name in _SYSTEMS.value:
        for slice_name in _TOPOLOGIES.value:
            try:
                row = cells(name, slice_name)
            except InputError as error:
                row = [f"`{name}.py:paper`", slice_name, str(error), *[""] * (len(HEAD) - 3)]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    app.run(main)
