"""Opens the runs of a report one after another and collects what it needs from them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pinjax.distributed import sharding
from pinjax.evaluation.records import Records
from pinjax.reporting import browser, calibration, figures, maps, spread
from pinjax.reporting.blocks import Block
from pinjax.reporting.runs import Run
from pinjax.reporting.shown import Shown
from pinjax.serving import run as serving
from pinjax.training import checkpoint

USERS = 120  # in the browsers of a page
ITEMS = 600  # with their neighbours
SPREAD = 2_000  # users whose recommendations are counted
NEIGHBOURS = 10
_ITEM = "item"


@dataclasses.dataclass(eq=False)
class Users:
    """Some users, or queries or groups, of the first records of a group's runs.

    Attributes:
      records: with their labels.
      everybody: own ids of those whose recommendations are counted.
      ids: own ids of those in the browser.
      did: what these did.
      kinds: of actions in their histories.
      entries: of the browser.
      counted: how often items were recommended, and acted on.
    """

    records: Records
    everybody: list[Any]
    ids: list[Any]
    did: list[browser.Did]
    kinds: Sequence[str]
    entries: list[dict[str, Any]]
    counted: list[spread.Counted]


@dataclasses.dataclass(eq=False)
class Group:
    """Runs on the same data set that answer the same kind of query.

    Attributes:
      noun: "user", "query", "group" or "item".
      shown: the items that are shown.
      mapped: own ids of the items on maps.
      items: own ids of the items with neighbours.
      users: None without records.
      runs: numbers of the runs.
      neighbours: by run, of each of `items`.
    """

    noun: str
    shown: Shown
    mapped: list[Any]
    items: list[Any]
    users: Users | None = None
    runs: list[int] = dataclasses.field(default_factory=list)
    neighbours: list[list] = dataclasses.field(default_factory=list)

    @property
    def nouns(self) -> str:
        """The noun's plural."""
        return "queries" if self.noun == "query" else f"{self.noun}s"


class Opened:
    """What is found by opening runs.

    Attributes:
      groups: of runs.
      calibrations, maps: blocks.
    """

    def __init__(self, runs: Sequence[Run], verify: bool):
        """Opens all runs.

        Args:
          runs: of the report; what cannot be found is noted there.
          verify: whether checksums are compared.
        """
        self._runs, self._verify = runs, verify
        self._groups: dict[tuple[str, str], Group] = {}
        self.calibrations: list[Block] = []
        self.maps: list[Block] = []
        for number, run in enumerate(runs):
            what = "recommendations, neighbours, the map and logQ"
            opened = run.attempt(what, lambda run=run: serving.open_run(run.workdir, verify=verify))
            if opened is not None:
                self._look(number, run, opened)

    @property
    def groups(self) -> list[Group]:
        return list(self._groups.values())

    def _look(self, number: int, run: Run, opened: serving.Run) -> None:
        embedded = opened.embed_items()
        noun = opened.known().name
        records = run.chosen
        if records is not None and records.about.averaged_over == "labels" and noun != "query":
            noun = _ITEM  # it was evaluated on items that lead to others
        key = opened.dataset.spec.digest, noun
        if key not in self._groups:
            self._groups[key] = self._group(key, opened, embedded)
        group = self._groups[key]
        group.runs.append(number)
        if group.users is None and records is not None:
            group.users = self._users(group, records, run.split)
        self._map(run, group, embedded)
        there = set(embedded["item"].to_pylist())
        near = opened.similar([id_ for id_ in group.items if id_ in there], NEIGHBOURS)
        group.neighbours.append(browser.answers(near, group.items, group.shown))
        if group.users is not None:
            self._recommend(number, run, opened, group)
        if opened.system.trainable is not None and opened.system.trainable.sketched_ids is not None:
            self._calibrate(number, run, opened)

    def _group(self, key: tuple[str, str], opened: serving.Run, embedded: pa.Table) -> Group:
        dataset, parts = opened.dataset, len(self._runs)
        others = (g.shown for (digest, _), g in self._groups.items() if digest == key[0])
        shown = next(others, None) or Shown(dataset)
        ids = np.array(embedded["item"].to_pylist(), object)
        drawn = np.random.default_rng(0).permutation(len(ids))
        counts = dataset.catalogue.counts[[shown.row_of[id_] for id_ in ids]]
        popular = np.argsort(-counts, kind="stable")[: ITEMS // parts // 2]
        chosen = list(dict.fromkeys([*popular.tolist(), *drawn.tolist()]))[: ITEMS // parts]
        mapped = ids[drawn[: maps.ITEMS // parts]].tolist()
        return Group(key[1], shown, mapped, ids[chosen].tolist())

    def _users(self, group: Group, records: Records, split: str) -> Users:
        shown, dataset = group.shown, group.shown.dataset
        # Recommendations are as of the end of training, when by default the first window begins.
        some = browser.sample(records, USERS // len(self._runs), first_window=True)
        everybody = list(dict.fromkeys([*some, *browser.sample(records, SPREAD)]))[:SPREAD]
        did = [browser.did(records, id_) for id_ in some]
        known = browser.Histories(dataset, records, group.noun, split, some)
        entries = [
            browser.entry(id_, records, then, known, shown)
            for id_, then in zip(some, did, strict=True)
        ]
        counts, asked = np.zeros(len(dataset.catalogue), np.int64), set(everybody)
        labels = records.labels["user"].tolist(), records.labels["label"].tolist()
        for user, label in zip(*labels, strict=True):
            counts[shown.row_of[label]] += user in asked
        counted = [spread.Counted("what they did", counts)]
        return Users(records, everybody, some, did, known.kinds, entries, counted)

    def _map(self, run: Run, group: Group, embedded: pa.Table) -> None:
        place = {id_: row for row, id_ in enumerate(embedded["item"].to_pylist())}
        known = [id_ for id_ in group.mapped if id_ in place]
        vectors = embedded["vector"].combine_chunks()
        vectors = vectors.flatten().to_numpy().reshape(len(place), -1)
        rows = [group.shown.row_of[id_] for id_ in known]
        names = group.shown.names(rows)
        names = [name or f"item {id_}" for name, id_ in zip(names, known, strict=True)]
        told = f"{len(known):,} of {len(place):,} items, drawn at random"
        if len(known) == len(place):
            told = f"All {len(known):,} items"
        told += ", placed by t-SNE of their embeddings: near items are similar."
        places = maps.project(vectors[[place[id_] for id_ in known]])
        topics = group.shown.dataset.catalogue.topics[rows]
        self.maps.append(maps.block(run.name, told, places, topics, names))

    def _recommend(self, number: int, run: Run, opened: serving.Run, group: Group) -> None:
        users, shown = group.users, group.shown
        rank = browser.ranks(run.chosen) if run.chosen is not None else {}
        for entry, then in zip(users.entries, users.did, strict=True):
            of_labels = browser.keys(users.records, then.rows)
            entry["ranks"].append([number, [rank.get(key) for key in of_labels]])
        if group.noun == "user" and opened.dataset.spec.leave_one_out:
            run.missing.append("recommendations: with leave-one-out they come after the label")
            return
        ask = opened.similar if group.noun == _ITEM else opened.recommend
        table = run.attempt("recommendations", lambda: ask(users.everybody, spread.K))
        if table is None:
            return
        found = browser.answers(table, users.ids, shown)
        for entry, items in zip(users.entries, found, strict=True):
            entry["recommended"].append([number, items])
        rows = [shown.row_of[id_] for id_ in table["item"].to_pylist()]
        counts = np.bincount(rows, minlength=len(shown.dataset.catalogue))
        users.counted.append(spread.Counted(run.name, counts, figures.colour(number), "solid"))

    def _calibrate(self, number: int, run: Run, opened: serving.Run) -> None:
        mesh, config = sharding.mesh_of(opened.config), opened.config
        state = checkpoint.load_chosen(run.workdir, config, opened.system, mesh, self._verify)
        for found in calibration.measure(opened.system, state.sketches, int(state.step)):
            self.calibrations.append(calibration.block(run.name, figures.colour(number), found))
