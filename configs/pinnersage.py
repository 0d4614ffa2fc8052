"""PinnerSage (Pal et al., KDD 2020): a user's interests, as items. Nothing is trained.

python -m pinjax.evaluate --config=configs/pinnersage.py            # pinworld
python -m pinjax.evaluate --config=configs/pinnersage.py:test       # seconds
python -m pinjax.embed --config=configs/pinnersage.py --out=DIR
python -m pinjax.evaluate --config=configs/pinnersage.py --config.data.name=DIR \
    --config.data.positives=ACTION,ACTION --config.data.surfaces=    # your own log

On two CPU cores the default takes a minute and finds 0.068 of the test labels in the top 10
(Recall@10; with an oracle that chooses among 20 clusters 0.102; PinnerFormer 0.147).
"""

from configs import common
from pinjax.settings import UINT32, Float, Int, Section, Size
from pinjax.timestamps import DAY


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = common.config("pinnersage", trained=False)
    common.add_timelines(config, length=512)
    # Positive actions in so many seconds before the request are clustered.
    config.data.recent = Int(90 * DAY, at_least=1, at_most=UINT32, unit="seconds")

    model = config.model
    # The largest distance at which clusters of vectors of unit length are merged;
    # docs/how-pinnersage-works.md says how it was chosen.
    model.threshold = Float(3.0, at_least=0)
    model.decay = Float(0.01, at_least=0)  # λ: of the importance of an action, a day
    model.vectors = Size(3)  # medoids that are drawn for a user
    model.seed = Int(0, at_least=0, at_most=UINT32)  # ... by this seed

    return common.with_variant(config, VARIANTS, variant)


def _paper(config: Section) -> None:
    """The published system, as by default, on the largest simulated log."""
    config.data.name = "pinworld/base"
    config.evaluate.users = 20_000


def _test(config: Section) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinworld/tiny", length=64)
    config.model.threshold = 1.0  # so that in short histories, too, there are several interests
    config.evaluate.update(users=40, batch=32)


def _ifdb(config: Section) -> None:
    """Interactive fiction, by the evaluation of `common.ifdb_timelines`."""
    common.ifdb_timelines(config)
    config.data.recent = 5 * 365 * DAY  # in 90 days hardly anybody plays several games


VARIANTS = {"paper": _paper, "test": _test, "ifdb": _ifdb}
