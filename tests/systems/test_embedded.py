"""Users who acted since are computed anew, and nobody else; against a full embedding."""

import types

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums
from pinjax.data import dataset as dataset_lib
from pinjax.data import embeddings, kept
from pinjax.distributed import batching
from pinjax.errors import InputError
from pinjax.systems import embedded, system
from tests import days

LATER = days.EARLIER + 6 * days.DAY
BATCH = 8


@pytest.fixture(scope="module", params=[True, False], ids=["text", "integers"])
def data(tmp_path_factory, request):
    return days.prepare_both(tmp_path_factory.mktemp("days"), request.param)


class Histories:
    """A system that embeds a user by sums over the history, and tells how many it embedded."""

    def __init__(self, directory, several):
        self.dataset = dataset_lib.open_directory(epath.Path(directory))
        self._several, self.embedded = several, 0

    def serve(self, params, as_of):
        del params, as_of
        rows = np.arange(3)
        return system.Served(
            system.EmbeddedRows(rows, lambda rows: np.ones((len(rows), 4))), self._users
        )

    def _users(self, parts):
        return batching.over_parts(self._embed, parts, BATCH)

    def _embed(self, history):
        assert len(history["item"]) == BATCH
        self.embedded += BATCH
        seconds = history["time"].astype(np.float32) % 1000
        exists = history["item"] >= 0
        found = [exists, seconds * exists, history["action"], history["duration"] + exists]
        found = np.stack([x.sum(axis=1) for x in found], axis=1).astype(np.float32)
        if not self._several:
            return found
        # One to three vectors; some users have none.
        number = (found[:, 0] % 4).astype(int)
        return np.where(np.arange(3)[:, None] < number[:, None, None], found[:, None] + 1, 0)


def embed(made, as_of, former=None):
    """The users' parts by name of their files."""
    config = ConfigDict({"data": {"length": 5}, "evaluate": {"batch": BATCH}})
    shards = embedded.tables(config, made, None, as_of, former)["users"]
    files = embeddings.file_names("users", len(shards))
    return {file: shard() for file, shard in zip(files, shards, strict=True)}


def write(directory, parts, as_of):
    directory.mkdir()
    for file, part in parts.items():
        with (directory / file).open("wb") as content:
            embeddings.write(embeddings.to_arrow(*part, "float32"), content)
    written = {file: checksums.of_file(epath.Path(directory / file)) for file in parts}
    manifest = {"checkpoint": "x", "as_of": embeddings.timestamps.iso(as_of), "files": written}
    (directory / embeddings.MANIFEST).write_text(checksums.dump(manifest))
    return kept.Kept(embeddings.open_directory(epath.Path(directory), None, verify=True))


def rows_of(parts):
    """(own id, vector, time) of all rows in order."""
    return [
        (own, vector.tolist(), int(time))
        for part in parts.values()
        for own, vector, time in zip(
            part.ids, part.vectors, np.broadcast_to(part.as_of, len(part.ids)), strict=True
        )
    ]


@pytest.mark.parametrize("several", [False, True])
def test_only_who_acted_since_is_computed(data, tmp_path, several):
    earlier, later = (Histories(directory, several) for directory in data)
    former_rows = rows_of(parts := embed(earlier, days.EARLIER))
    assert {time for _, _, time in former_rows} == {days.EARLIER}
    former = write(tmp_path / "former", parts, days.EARLIER)

    full = rows_of(embed(later, LATER))
    later.embedded = 0
    found = rows_of(once := embed(later, LATER, former))

    times = {}  # of the actions of each user
    for split in ("train", "valid", "test"):
        for chunk in later.dataset.chunks(split):
            for row, own in enumerate(chunk.users):
                some = chunk.records["time"][slice(*chunk.offsets[row : row + 2])]
                times[own] = some.astype(int)
    had = {own for own, _, _ in former_rows}
    acted = {own for own, some in times.items() if ((some > days.EARLIER) & (some <= LATER)).any()}
    computed = acted | {
        own for own, some in times.items() if (some <= LATER).any() and own not in had
    }
    assert len(acted - had) > 5  # users who are new
    assert len(had - acted) > 5
    assert len(computed) <= later.embedded < len(computed) + 3 * BATCH  # a batch a file is padded
    expected = []
    for own in dict.fromkeys(own for own, _, _ in full):
        source = full if own in computed else former_rows
        expected += [row for row in source if row[0] == own]
    assert found == expected

    # The next day: each date is that of the user's own last computation.
    again = write(tmp_path / "again", once, LATER)
    before = {own: time for own, _, time in found}
    for own, _, time in rows_of(embed(later, LATER + days.DAY, again)):
        some = times.get(own, np.zeros(0))
        acted = own not in before or ((some > LATER) & (some <= LATER + days.DAY)).any()
        assert time == (LATER + days.DAY if acted else before[own])


def test_a_user_who_is_gone_is_dropped(data, tmp_path):
    earlier, later = (Histories(directory, several=False) for directory in data)
    former = write(tmp_path / "former", embed(later, LATER), LATER)
    earlier.embedded = 0
    found = rows_of(embed(earlier, LATER, former))
    assert earlier.embedded == 0
    assert {time for _, _, time in found} == {LATER}
    assert {own for own, _, _ in found} == {own for own, _, _ in rows_of(embed(earlier, LATER))}


def test_vectors_of_another_dimension_are_refused(data, tmp_path):
    made = Histories(data[0], several=False)
    parts = embed(made, LATER)
    parts = {file: part._replace(vectors=part.vectors[:, :3]) for file, part in parts.items()}
    former = write(tmp_path / "former", parts, LATER)
    with pytest.raises(InputError, match="vectors of users have 3 numbers; expected 4"):
        embed(made, LATER, former)


MANIFEST = {
    "system": "pinnerformer",
    "checkpoint": "a",
    "config": "b",
    "precision": "float16",
    "as_of": "2025-01-02T00:00:00+00:00",
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": "pinnersage"}, "of system pinnersage, not pinnerformer"),
        ({"checkpoint": "c"}, "of checkpoint c, not a"),
        ({"config": "c"}, "of config c, not b"),
        ({"spaces": "c"}, "of spaces c, not None"),
        ({"precision": "float32"}, "of precision float32, not float16"),
        ({"as_of": "2025-01-03T00:00:00+00:00"}, "as of 2025-01-03.*, which is later than"),
    ],
)
def test_other_embeddings_are_refused(fields, message):
    kept.check(types.SimpleNamespace(directory="DIR", manifest=MANIFEST), MANIFEST)
    former = types.SimpleNamespace(directory="DIR", manifest=MANIFEST | fields)
    with pytest.raises(InputError, match=f"--since=DIR holds embeddings .*{message}"):
        kept.check(former, MANIFEST)
