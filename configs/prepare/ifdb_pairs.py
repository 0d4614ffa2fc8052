"""IFDB, the interactive-fiction database: a game and the one that the same user added after it.

python -m pinjax.prepare --config=configs/prepare/ifdb_pairs.py \
    --events=playedgames.parquet,wishlists.parquet --items=game_docs_retrieval.parquet --out=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    '--config.tasks=(("image/played", 1.0, 0), ("image/wish-listed", 1.0, 0))' \
    '--config.model.texts=(("title", "title"), ("author", "author"), ("tags", "tags"),
                           ("document", "document"))' \
    --config.model.dim=1024

One row in nine is of a game without a document: these are dropped. Vectors are made of the words of
all four. Documents and tags are those of today, of a game's whole life.
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.engagements()
    config.name = "ifdb"
    config.tolerance = 0.12
    config.events.item = "gameid"
    config.events.group = "userid"
    config.events.time = "date_added"
    config.events.since = "2007-01-01"  # rows of 1980 stand for an unknown date
    config.events.action_by_file = (("playedgames", "played"), ("wishlists", "wish-listed"))
    config.catalogue.id = "gameid"
    config.catalogue.texts = (
        *((name, name) for name in ("title", "author", "tags")),
        ("document", "doc_text"),
    )
    config.vectors.texts = ("title", "author", "tags", "document")
    config.vectors.language = "english"
    config.vectors.dim = 1_024  # 256 tell words apart less well
    config.split.train_end = "2023-01-01"
    config.split.cold = 0.0  # of the later engagements two in five are with games unseen until then
    return config
