"""A run, opened to embed and to recommend.

>>> import pinjax
>>> run = pinjax.open("work/pinnersage")
>>> found = run.recommend(["u00000001", "u00000002"], k=3)
>>> found.column_names, len(found)
(['user', 'item', 'score', 'rank'], 6)
>>> someone = {"user": ["me"], "item": [1000000001], "time": [1_743_000_000]}
>>> someone |= {"action": ["save"], "surface": ["home"], "duration": [0.0]}
>>> run.embed_users(someone)["user"].to_pylist()
['me']
>>> 1000000001 in run.recommend(histories=someone, k=5)["item"].to_pylist()
False
>>> run.similar([1000000001], k=2, deny=[1000000002])["rank"].to_pylist()
[1, 2]
>>> run.search(["red shoes"])
Traceback (most recent call last):
pinjax.errors.InputError: pinnersage embeds no texts of searches
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath
from ml_collections import ConfigDict

from pinjax.data import catalogue
from pinjax.data.dataset import Dataset
from pinjax.data.sources import histories as histories_lib
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.evaluation import vector_search
from pinjax.serving import found as found_lib
from pinjax.serving import previous, requests
from pinjax.serving.requests import Request
from pinjax.systems import system
from pinjax.training import checkpoint, step, workdirs


class Run:
    """A system with the parameters that a run would serve.

    Ids are the user's own, integers or text. They go in as any sequence, array or column; tables as
    Arrow, pandas or polars frames, dicts of columns, or structured arrays. Arrow tables come out.

    Attributes:
      config: of the run.
      system: on its data set.
      params: of the checkpoint.
      trained: the same as they are on the run's own data set.
      step: steps done in the checkpoint.
      as_of: unix seconds: what happened later is not read, and items made later are not found.
    """

    def __init__(
        self,
        config: ConfigDict,
        made: system.System,
        state: step.State,
        as_of: int | None = None,
        trained: Any = None,
        verify: bool = True,
    ):
        """Opens a run.

        Args:
          config: of the run.
          made: its system.
          state: of its checkpoint.
          as_of: unix seconds; None: the end of training, and for histories their latest action.
          trained: parameters as they are on the run's own data set; None: `state` is of that.
          verify: whether checksums of an index are compared.
        """
        self.config, self.system, self._verify = config, made, verify
        self.params, self.step = state.params, int(state.step)
        self.as_of = made.dataset.spec.train_end if as_of is None else as_of
        self._given_as_of = as_of
        self.trained = state.params if trained is None else trained
        self._users = requests.Users(config, made.dataset)
        self._served = functools.lru_cache(maxsize=1)(functools.partial(made.serve, self.params))
        self._items = functools.lru_cache(maxsize=1)(self._embed_items)

    @property
    def dataset(self) -> Dataset:
        """The data set of the system."""
        return self.system.dataset

    def recommend(
        self,
        ids: Any = None,
        k: int = 10,
        *,
        histories: Any = None,
        filter_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        index: epath.PathLike | None = None,
    ) -> pa.Table:
        """The best items for users; if the system has no users, for queries, groups or items.

        Args:
          ids: of users; None: all.
          k: items of each.
          histories: in place of `ids`, what others did who need not be in the data set: a table
            with the columns of its column map, or names of files, with commas between.
          filter_seen: whether items are left out that the user acted on, or that are in the group.
          allow: ids of the only items that may be found; None: all.
          deny: ids of items that may not be found.
          index: directory of `pinjax.index build`, of this run's embeddings; None: exact search.

        Returns:
          a table of user (or query, group, from_item), item, score, and rank from 1. A user for
          whom fewer than k items are left has fewer rows.

        Raises:
          InputError: for unknown ids or wrong histories, or both at once.
        """
        if ids is not None and histories is not None:
            raise InputError("ids and histories are given; expected one of them")
        request = self.known(ids) if histories is None else self.histories(histories)
        return pa.concat_tables(self.answer(request, k, filter_seen, allow, deny, index))

    def similar(self, ids: Any, k: int = 10, *, allow: Any = None, deny: Any = None) -> pa.Table:
        """The items nearest to items. Arguments and result as `recommend`."""
        return pa.concat_tables(self.answer(self.items(ids), k, True, allow, deny))

    def search(self, texts: Any, k: int = 10, *, allow: Any = None, deny: Any = None) -> pa.Table:
        """The best items for texts of searches. Arguments and result as `recommend`.

        A system with frozen vectors of searches knows only the texts of its data set.
        """
        return pa.concat_tables(self.answer(self.texts(texts), k, True, allow, deny))

    def embed_users(self, histories: Any) -> pa.Table:
        """Embeddings of users by their histories, which are as in `recommend`.

        Returns:
          a table of user and vector; a user of several vectors has a row for each, the most
          important first. A user with no known item has no row.
        """
        tables = []
        for some in self.histories(histories).batches:
            vectors = some.vectors.reshape(len(some.ids), -1, some.vectors.shape[-1])
            user, place = np.nonzero(vectors.any(axis=2))
            tables.append(_vectors("user", some.ids.take(pa.array(user)), vectors[user, place]))
        if not tables:
            none = pa.nulls(0, self._users.kind)
            tables = [_vectors("user", none, self._items(self.as_of).vectors[:0])]
        return pa.concat_tables(tables)

    def embed_items(self, ids: Any = None) -> pa.Table:
        """Embeddings of items: a table of item and vector, in the order of the ids.

        Args:
          ids: of items; None: all that have an embedding.
        """
        items = self._items(self.as_of)
        own = catalogue.id_array(self.dataset.catalogue.ids[items.rows])
        if ids is None:
            return _vectors("item", own, items.vectors)
        place = requests.places(requests.as_array(ids), own, "items")
        return _vectors("item", own.take(pa.array(place)), items.vectors[place])

    def evaluate(self, split: str = "test") -> pa.Table:
        """The results of a split: method, task, metric, value, and its interval, low and high.

        Args:
          split: "valid" or "test".

        Raises:
          InputError: for another split.
        """
        if split not in ("valid", "test"):
            raise InputError(f"split is {split!r}; expected valid or test")
        rows = self.system.evaluate(self.params, split, full=True).rows
        cells = [
            {"method": row.method, "task": row.task, "metric": name, **x._asdict()}
            for row in rows
            for name, x in row.metrics.items()
        ]
        return pa.Table.from_pylist(cells)

    def known(self, ids: Any = None) -> Request:
        """Users of the data set by their ids, or all; or else queries, groups or items."""
        served, dataset, wanted = self._served(self.as_of), self.dataset, requests.as_array(ids)
        if served.users:
            parts = self._users.known(served.users, self.as_of, wanted)
            return Request("user", self._users.kind, self.as_of, parts)
        if served.queries:
            seen = functools.partial(requests.themselves, dataset.queries.items)
            table, own = served.queries, dataset.queries.ids
            return self._rows("query", table, own, "queries", wanted, seen)
        if served.groups:
            seen = requests.in_groups(dataset, self.as_of)
            table, own = served.groups, dataset.groups
            return self._rows("group", table, own, "groups", wanted, seen)
        return self.items(ids)

    def histories(self, histories: Any) -> Request:
        """Users by what they did."""
        if not self._served(self.as_of).users:
            raise InputError(f"{self.config.system} embeds no users, so it reads no histories")
        if not isinstance(histories, str):
            histories = requests.as_table(histories)
        chunk = histories_lib.read(self.dataset, histories)
        as_of = self._given_as_of
        if as_of is None:
            as_of = int(chunk.records["time"].max(initial=0))
        parts = self._users.of_chunk(self._served(as_of).users, as_of, chunk)
        return Request("user", self._users.kind, as_of, parts)

    def items(self, ids: Any = None) -> Request:
        """Items by their embeddings; none is found for itself."""
        items, own = self._items(self.as_of), self.dataset.catalogue.ids
        table, wanted = system.EmbeddedRows(items.rows, items.of), requests.as_array(ids)
        seen = functools.partial(requests.themselves, np.arange(len(own)))
        return self._rows("from_item", table, own, "items", wanted, seen)

    def texts(self, texts: Any) -> Request:
        """Texts of searches."""
        served, wanted = self._served(self.as_of), requests.as_texts(texts)
        if served.texts:
            parts = requests.of_texts(served.texts, wanted)
            return Request("query", wanted.type, self.as_of, parts)
        if not served.queries:
            raise InputError(f"{self.config.system} embeds no texts of searches")
        queries, rows = self.dataset.queries, served.queries.rows
        table = served.queries._replace(rows=rows[queries.kinds[rows] == "text"])
        seen = functools.partial(requests.themselves, queries.items)
        return self._rows("query", table, queries.ids, "texts", wanted, seen)

    def answer(
        self,
        request: Request,
        k: int,
        filter_seen: bool = True,
        allow: Any = None,
        deny: Any = None,
        index: epath.PathLike | None = None,
    ) -> Iterator[pa.Table]:
        """The table of `recommend`, some of the requests at a time.

        Args:
          request: of `known`, `histories`, `items` or `texts`.
          k, filter_seen, allow, deny, index: as in `recommend`.
        """
        if not isinstance(k, int | np.integer) or k < 1:
            raise InputError(f"k is {k!r}; expected 1 or more")
        own = catalogue.id_array(self.dataset.catalogue.ids)
        allowed, k, number = self._allowed(request.as_of, own, allow, deny), min(k, len(own)), 0
        if index is None:
            find = found_lib.exactly(self._items(request.as_of), k, allowed)
        else:
            # Histories alone are as of their latest action; an index may be of later.
            as_of = request.as_of if request.as_of == self.as_of else None
            checked = found_lib.open_index(index, self._made_from(), as_of, self._verify)
            find = found_lib.by_index(checked, own, k, allowed)
        for number, some in enumerate(request.batches, start=1):  # noqa: B007, read below
            seen = some.seen
            if request.name in ("user", "group") and not filter_seen:
                seen = seen[:0]
            yield found_lib.table(request.name, some.ids, own, *find(some.vectors, seen))
        if not number:
            none = np.zeros((0, 1), np.int64)
            yield found_lib.table(request.name, pa.nulls(0, request.kind), own, none, none)

    def _made_from(self) -> dict[str, Any]:
        """What embeddings of this run say that they were made from."""
        found = checkpoint.identity(self.config, self.system, self.trained, self.step)
        names = ["system", "checkpoint", "config"]
        if self.system.trainable is None:  # there are no parameters that tell the space
            names += self.system.identity
        return {name: found[name] for name in names}

    def _rows(self, name: str, table: system.EmbeddedRows, ids: np.ndarray, *more: Any) -> Request:
        parts = requests.of_rows(table, ids, *more)
        return Request(name, catalogue.id_array(ids).type, self.as_of, parts)

    def _embed_items(self, as_of: int) -> vector_search.Items:
        items = self._served(as_of).items
        return vector_search.Items.create(items.rows, items.embed(items.rows))

    def _allowed(self, as_of: int, own: pa.Array, allow: Any, deny: Any) -> np.ndarray:
        """Bool (items,): whether an item of the catalogue may be found."""
        allowed = np.ones(len(own), bool)
        if not self.dataset.spec.leave_one_out:
            allowed = self.dataset.catalogue.created <= as_of
        if allow is not None:
            listed = np.zeros(len(own), bool)
            listed[requests.places(requests.as_array(allow), own, "allow")] = True
            allowed &= listed
        if deny is not None:
            allowed[requests.places(requests.as_array(deny), own, "deny")] = False
        return allowed


def open_run(workdir: epath.PathLike, as_of: int | None = None, verify: bool = True) -> Run:
    """Opens the run in a work directory.

    Args:
      workdir: of `pinjax.train`, or of `pinjax.evaluate` for a system without training.
      as_of: as in `Run`.
      verify: whether checksums of the checkpoint, the data set and an index are compared.

    Raises:
      InputError: if it holds no run, or its data set is not there or is another one now.
    """
    run = create(workdirs.config_of(workdir), workdir, as_of, verify)
    workdirs.check(workdir, run.config, run.system.identity)
    return run


def create(
    config: ConfigDict, workdir: epath.PathLike, as_of: int | None = None, verify: bool = True
) -> Run:
    """Opens a run by its config. Other arguments and errors as `open_run`."""
    mesh = sharding.mesh_of(config)
    made, state, trained = previous.bind(epath.Path(workdir), config, mesh, verify)
    return Run(config, made, state, as_of, trained, verify)


def _vectors(name: str, ids: pa.Array, vectors: np.ndarray) -> pa.Table:
    return pa.table({name: ids, "vector": catalogue.vector_array(vectors, "float32")})
