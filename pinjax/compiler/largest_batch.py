"""The largest batch that fits in a chip's memory, found by compiling few of them."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.compiler import programs, rates
from pinjax.errors import InputError
from pinjax.systems import registry

_TRIES = 3  # at most, beside that of twice the batch


def find(
    config: ConfigDict,
    mesh: Mesh,
    items: int | None,
    chip: rates.Chip,
    size: tuple[str, int],
    peak: int,
) -> int:
    """The largest global batch that is found to fit in some compilations.

    Memory is about a line over the batch. It is drawn through the config's batch and twice that,
    and where it meets the chip's memory a batch is compiled, and one a sixteenth smaller until one
    fits. Where not even twice the batch fits, the answer is looked for below it, by halves.

    Args:
      config: of the run.
      mesh: of the devices.
      items: of the catalogue, if not those of the data set.
      chip: whose memory is met.
      size: the field of the config's batch, and its own size, which fits.
      peak: bytes that it takes.
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
    """Bytes of a chip that the train step takes with a batch of another size."""
    config = ConfigDict(config.to_dict())
    section, name = field.split(".")
    config[section][name] = size
    trainable = registry.build(config, mesh, items)
    return programs.measure(programs.train_step(trainable, config.train, mesh), chip, "").peak
