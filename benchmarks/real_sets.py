"""The public sets that several scripts here measure on; each is prepared once, for all systems."""

import dataclasses
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from pinjax.data import dataset as dataset_lib
from pinjax.evaluation import graph_source

ROOT = pathlib.Path(__file__).parents[1]
GLOBO_USERS = 40_000


class Files(NamedTuple):
    """The raw tables of a set.

    Attributes:
      events: as --events.
      items: as --items.
      directory: where they are, if it does not have the set's name.
    """

    events: tuple[str, ...]
    items: tuple[str, ...] = ()
    directory: str = ""


FILES = {  # by name of the column map in configs/prepare
    "ifdb": Files(
        ("playedgames.parquet", "wishlists.parquet"),
        ("gametags.parquet", "game_docs_retrieval.parquet"),
    ),
    "globo": Files(("clicks.parquet",), ("articles.parquet",)),
    "kuairand": Files(("log.parquet",), directory="kuairand_like_hate"),
    "movielens_1m": Files(
        ("ml-1m.txt.gz",),
        ("sas_to_original_items.txt", "movies_extrainfos.dat", "poster_features.npz"),
    ),
    "instacart": Files(
        ("order_products__train.parquet",),
        ("products.parquet", "aisles.parquet", "departments.parquet"),
    ),
    "pinterest_graph": Files(("edges.parquet",)),
    "gowalla": Files(("edges.parquet",)),
    "homedepot": Files(("train.parquet",), ("train.parquet",)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Published(dataset_lib.Dataset):
    """A graph whose test edges are all that were published, those that are in training, too.

    No method finds these, since what a group is trained on is no answer; published figures count
    them as missed.

    Attributes:
      raw: the file of edges.
    """

    raw: pathlib.Path

    def held_out_edges(self, split: str) -> np.ndarray:
        if split != "test":
            return super().held_out_edges(split)
        table = pq.read_table(self.raw)
        group, item = (table[name].to_numpy() for name in table.column_names[:2])
        edges = np.stack(
            [np.searchsorted(self.groups, group), np.searchsorted(self.catalogue.ids, item)], axis=1
        )
        return np.unique(edges[table["is_test"].to_numpy().astype(bool)], axis=0).astype(np.int32)


def published(name: str, raw: pathlib.Path, workdir: pathlib.Path) -> Published:
    """pinterest_graph or gowalla with its published split, without a validation part."""
    made = prepare(name, raw, workdir / "published", "--config.split.valid=0")
    return Published(made.directory, made.spec, raw / name / FILES[name].events[0])


def prepare(
    name: str, raw: pathlib.Path, workdir: pathlib.Path, *flags: str, part: str = ""
) -> dataset_lib.Dataset:
    """The data set of a set in `workdir`, made by the command if it is not there.

    Args:
      name: of `FILES`.
      raw: directory of all sets.
      workdir: where data sets are kept.
      *flags: of the command, besides.
      part: file of events that is read instead.
    """
    source = FILES[name]
    directory = raw / (source.directory or name)
    events, items = (
        [str(directory / file) for file in files] for files in (source.events, source.items)
    )
    out = workdir / name
    command = [sys.executable, "-m", "pinjax.prepare", f"--config=configs/prepare/{name}.py"]
    command += [f"--events={part or ','.join(events)}", f"--out={out}", *flags]
    command += [f"--items={','.join(items)}"] if items else []
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return dataset_lib.open_directory(out)


def prepare_log(name: str, raw: pathlib.Path, workdir: pathlib.Path) -> dataset_lib.Dataset:
    """`prepare`, with a seeded part of globo's users, so that a CPU is enough."""
    if name != "globo":
        return prepare(name, raw, workdir)
    clicks = pq.read_table(raw / name / "clicks.parquet")
    users = np.unique(clicks["user_id"].to_numpy())
    some = np.random.default_rng(0).choice(users, GLOBO_USERS, replace=False)
    part = workdir / "clicks.parquet"
    pq.write_table(clicks.filter(pc.is_in(clicks["user_id"], pa.array(some))), part)
    return prepare(name, raw, workdir, "--config.split.test=0.3", part=str(part))


def all_groups(name: str, dataset: dataset_lib.Dataset) -> graph_source.GraphSource:
    """The queries of a method: all groups, and all items, as in published tables."""
    config = ConfigDict({"queries": dataset.spec.num_groups, "index_size": dataset.spec.num_items})
    return graph_source.GraphSource(name, dataset, graph_source.known_items(dataset), config)
