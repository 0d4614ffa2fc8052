"""A PinnerFormer step at best, by the TPU compiler, on short windows that are packed.

    python -m benchmarks.packed_roofline --config=configs/pinnerformer.py:paper --topology=v5e:4x4

Each kind of lengths (short_windows.py) has its own number of rows, so its own program; the program
of full windows is also that of short ones which are not packed. As in pinjax.compile the time is a
bound from the chip's published rates.
"""

import numpy as np
from absl import flags

from benchmarks import short_windows
from pinjax import app
from pinjax.compiler import programs, rates, topology
from pinjax.distributed import sharding

CONFIG = app.run_config()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "slice of TPUs")
LENGTHS = flags.DEFINE_multi_enum(
    "lengths", ["full", "quarter", "globo"], short_windows.KINDS, "of windows"
)


def main(argv):
    del argv
    config = CONFIG.value
    devices = topology.devices(TOPOLOGY.value)
    mesh, chip = sharding.make_mesh(devices), rates.of(devices)
    users, length, chips = config.data.users, config.data.length, mesh.shape["data"]
    print(f"{users} users on {chips} {chip.name}, windows of at most {length} actions")
    print(
        f"{'lengths':9}{'rows':>7}{'filled':>8}{'labels':>9}{'a step, ms':>12}  {'bound by':14}",
        end="",
    )
    print(f"{'TFLOPs':>8}{'traffic':>10}{'sent':>10}{'users/s and chip':>18}{'actions':>10}")
    for kind in LENGTHS.value:
        lengths = short_windows.draw(kind, users, length, np.random.default_rng(0))
        layout = next(iter(short_windows.layouts_of(config, lengths, chips).values()))
        trainable = short_windows.trainable_of(config, mesh, layout)
        program = programs.train_step(trainable, config.train, mesh)
        bound = programs.measure(program, chip, "--config.data.users").roofline
        of_users, of_actions = (
            number / chips / bound.step for number in (users, lengths.mean() * users)
        )
        print(f"{kind:9}{layout.rows:7,}{layout.fill:8.0%}{layout.labels:9,}", end="")
        print(f"{1e3 * bound.step:12,.2f}", end="")
        print(f"  {bound.bound:14}{bound.flops / 1e12:8,.2f}{rates.size(bound.bytes):>10}", end="")
        print(f"{rates.size(bound.sent):>10}{of_users:18,.0f}{of_actions:10,.0f}", flush=True)


if __name__ == "__main__":
    app.run(main)
