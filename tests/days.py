"""Two states of one log, the later one with new users, items, words and action types."""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pinjax.data.sources import column_map, prepare
from pinjax.timestamps import DAY

START = 1_600_000_000
EARLIER = START + 20 * DAY  # the last event of the earlier state
WORDS = (
    *("oak", "chair", "red", "lamp", "desk", "blue", "bench", "black", "stool", "green"),
    *("zinc", "vase"),
)
_EVENTS, _ITEMS, _OLD, _USERS, _OLD_USERS, _DIM = 4_000, 80, 60, 90, 60, 8


def prepare_both(directory: pathlib.Path, text_ids: bool) -> tuple[str, str]:
    """Prepares the log as it was, and as it is ten days later, with all parts."""
    rng = np.random.default_rng(0)

    def own(kind: str, numbers: np.ndarray) -> np.ndarray:
        mixed = numbers * 7919 % 1000  # in another order than the numbers
        return np.array([f"{kind}{number:03d}" for number in mixed]) if text_ids else mixed

    time = np.sort(rng.integers(START, START + 30 * DAY, _EVENTS))
    late = time > EARLIER
    item = rng.integers(0, np.where(late, _ITEMS, _OLD))
    user = rng.integers(0, np.where(late, _USERS, _OLD_USERS))
    user = np.where(late, user // 2 * 2, user)  # the others do nothing more
    names = [" ".join(rng.choice(WORDS[: 10 if i < _OLD else 12], 3)) for i in range(_ITEMS)]
    action = np.array(["buy", "click", "hide"])[rng.integers(0, 3, _EVENTS)]
    vectors = rng.normal(size=(_ITEMS, _DIM))
    events = {
        "user": own("u", user),
        "item": own("i", item),
        "time": time,
        "action": np.where(late & (rng.random(_EVENTS) < 0.3), "again", action),
        "query": [f"{names[i].split()[0]} {rng.integers(20)}" for i in item],
        "basket": rng.integers(0, 300, _EVENTS),
    }
    # Given, since vectors of words lie in another space in each state.
    ids = [*np.unique(events["query"]), *own("i", np.arange(_ITEMS)).astype(str)]
    of_ids = rng.normal(size=(len(ids), _DIM)).tolist()
    queries = directory / "queries.parquet"
    pq.write_table(pa.table({"query": ids, "vector": of_ids}), queries)
    made = []
    for name, there in (("earlier", ~late), ("later", late | ~late)):
        items = np.unique(item[there])
        log, table = directory / f"{name}.parquet", directory / f"{name}-items.parquet"
        pq.write_table(pa.table({key: np.asarray(x)[there] for key, x in events.items()}), log)
        known = {"item": own("i", items), "name": [names[i] for i in items]}
        pq.write_table(pa.table(known | {"vector": vectors[items].tolist()}), table)
        inputs = prepare.Inputs.find([str(log)], [str(table)], [str(queries)])
        prepare.prepare(inputs, directory / name, _columns(name))
        made.append(str(directory / name))
    return tuple(made)


def _columns(name):
    config = column_map.default()
    config.name = name
    config.split.update(valid=0.2, test=0.3, test_days=5.0)
    config.events.update(user="user", time="time", time_unit="s", action="action")
    config.events.update(query="query", group="basket")
    config.catalogue.update(texts=(("title", "name"),), content="vector", images="vector")
    config.pairs.sequence = "user"
    return config
