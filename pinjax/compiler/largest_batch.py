"""The largest batch that fits in a chip's memory, found by compiling few of them."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.compiler import programs, rates
from pinjax.errors import InputError
from pinjax.systems import registry

_TRIES = 3  # of a batch that the line through two others promises to fit


def find(config: ConfigDict, mesh: Mesh, items: int | None, chip: rates.Chip, peak: int) -> int:
    """The largest global batch that fits, to a sixteenth.

    Memory is about a line over the batch: it is drawn through the config's batch and twice that,
    and the batch at which it meets the chip's memory is compiled. Where that does not fit, one
    that is a sixteenth smaller is, and so on.

    Args:
      config: of the run.
      mesh: of the devices.
      items: of the catalogue, if not those of the data set.
      chip: whose memory is met.
      peak: bytes that the config's own batch takes on it.

    Raises:
      InputError: where no batch that was tried fits.
    """
    field, size = registry.create_outline(config, mesh, items).size
    try:
        twice = _peak(config, mesh, items, chip, field, 2 * size)
    except InputError:  # then the answer is between the two
        twice, guess = None, 2 * size
    if twice is not None:
        guess = int(size + size * (chip.memory - peak) / max(twice - peak, 1))
    best = size if twice is None else 2 * size
    for attempt in range(_TRIES):
        tried = int(guess * (1 - (attempt + (twice is None)) / 16))
        tried -= tried % mesh.shape["data"]
        if tried <= best:
            break
        try:
            _peak(config, mesh, items, chip, field, tried)
        except InputError:
            continue
        return tried
    return best


def _peak(config, mesh, items, chip, field, size) -> int:
    """Bytes of a chip that the train step takes with a batch of another size."""
    config = ConfigDict(config.to_dict())
    section, name = field.split(".")
    config[section][name] = size
    outline = registry.create_outline(config, mesh, items)
    return programs.measure(programs.train_step(outline, config.train, mesh), chip, "").peak
