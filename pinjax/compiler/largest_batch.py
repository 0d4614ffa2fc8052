"""The largest batch that fits in a chip's memory, found with few compilations."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.compiler import programs, rates
from pinjax.errors import InputError
from pinjax.systems import registry

_TRIES = 3  # the most, besides twice the batch


def find(
    config: ConfigDict,
    mesh: Mesh,
    items: int | None,
    chip: rates.Chip,
    size: tuple[str, int],
    peak: int,
) -> int:
    """The largest global batch that is found to fit with a few compilations.

    Memory is about linear in the batch. The line through the config's batch and twice this batch
    gives the batch at which the chip's memory is full. It is compiled, and then smaller ones, by a
    sixteenth each, until one fits. If twice the batch does not fit, the interval below is bisected.

    Args:
      config: of the run.
      mesh: of the devices.
      items: of the catalogue, if not those of the data set.
      chip: with the memory.
      size: the field of the config's batch, and its value, which fits.
      peak: bytes of this batch.
    """
    field, own = size

    def peak_of(size: int) -> int | None:
        try:
            return _peak(config, mesh, items, chip, field, size)
        except InputError:
            return None

    def shared(size: float) -> int:
        return int(size) // mesh.shape["data"] * mesh.shape["data"]

    twice = peak_of(2 * own)
    if twice is None:
        fits, fails = own, 2 * own
        for _ in range(_TRIES):
            middle = shared((fits + fails) / 2)
            fits, fails = (fits, middle) if peak_of(middle) is None else (middle, fails)
        return fits
    end = own + own * (chip.memory - peak) / max(twice - peak, 1)
    for sixteenths in range(16, 16 - _TRIES, -1):
        tried = shared(end * sixteenths / 16)
        if tried > 2 * own and peak_of(tried) is not None:
            return tried
    return 2 * own


def _peak(config, mesh, items, chip, field, size) -> int:
    """Bytes of a chip that the train step takes for another batch size."""
    config = ConfigDict(config.to_dict())
    section, name = field.split(".")
    config[section][name] = size
    trainable = registry.build(config, mesh, items)
    return programs.measure(programs.train_step(trainable, config.train, mesh), chip, "").peak
