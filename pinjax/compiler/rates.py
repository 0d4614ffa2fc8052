"""Published rates of chips."""

import dataclasses
from collections.abc import Sequence

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's published rates.

    Attributes:
      name: of the chip.
      flops: dense bfloat16 FLOPs per second.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      interconnect: bytes per second that it can send to other chips, over all links.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# By JAX's device_kind. TPUs: docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x, the table of
# specifications, where the interconnect is given as the sum of both ways; v4's, which an older
# version of its page has, in bits, one way. GPUs: NVIDIA's data sheets of the SXM versions, where
# NVLink is given as the sum of both ways.
CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * GIB, 1.2e12, 2400e9 / 8),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * GIB, 819e9, 400e9 / 2),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * GIB, 2765e9, 1200e9 / 2),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * GIB, 1638e9, 800e9 / 2),
    "TPU7x": Chip("TPU7x", 2307e12, 192 * GIB, 7380e9, 1200e9 / 2),
    "NVIDIA H100 80GB HBM3": Chip("NVIDIA H100", 989e12, 80e9, 3.35e12, 900e9 / 2),
    "NVIDIA H200": Chip("NVIDIA H200", 989e12, 141e9, 4.8e12, 900e9 / 2),
}


def of(devices: Sequence[jax.Device]) -> Chip | None:
    """The rates of a device; None if they are not known, as for a CPU.

    If JAX has several devices for a chip, such as the two cores of a TPU7x, each has its share. Of
    the interconnect, too: what a core sends to the other one of its chip takes a faster way, so
    there the bound may be too high.
    """
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None or not hasattr(devices[0], "coords"):
        return chip
    cores = len(devices) // len({tuple(device.coords) for device in devices})
    if cores == 1:
        return chip
    rates = (chip.flops, chip.memory, chip.bandwidth, chip.interconnect)
    return Chip(f"{chip.name} core", *(rate / cores for rate in rates))


def size(size: float) -> str:
    """A size in bytes with a readable unit."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1000:
            return f"{size:,.3g} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
