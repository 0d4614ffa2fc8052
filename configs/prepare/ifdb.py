"""IFDB, the interactive-fiction database: games played and wish-listed, 2007 to 2026.

python -m pinjax.prepare --config=configs/prepare/ifdb.py \
    --events=playedgames.parquet,wishlists.parquet \
    --items=gametags.parquet,game_docs_retrieval.parquet --out=DIR
python -m pinjax.train --config=configs/pinnerformer.py:ifdb --config.data.name=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    --config.model.embedding_dim=1024 --config.model.residual=True \
    '--config.tasks=(("image/played", 1.0, 0), ("image/wish-listed", 1.0, 0))' \
    '--config.model.texts=(("title", "title"), ("author", "author"), ("tags", "tags"),
                           ("document", "document"))'

Timelines of users; pairs of a game and the one that its user added next; the graph of games and
tags. Half of the users are kept for evaluation, as one window holds few of them: from 2023 on. One
row in nine is of a game without a document, which is in no pair. Documents and tags are
today's, of a game's entire life.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "ifdb"
    config.tolerance = 0.12
    config.events.user = "userid"
    config.events.item = "gameid"
    config.events.time = "date_added"
    config.events.since = "2007-01-01"  # rows of 1980 stand for an unknown date
    config.events.action_by_file = (("playedgames", "played"), ("wishlists", "wish-listed"))
    config.pairs.sequence = "user"
    config.catalogue.id = "gameid"
    config.catalogue.tags = "tag"  # one tag a row
    config.catalogue.name = "game_docs_retrieval.title"
    config.catalogue.texts = tuple(
        (name, f"game_docs_retrieval.{column}")
        for name, column in (
            *((name, name) for name in ("title", "author", "tags")),
            ("document", "doc_text"),
        )
    )
    config.sides.game_docs_retrieval = column_map.side(on="gameid", id="gameid", partial=True)
    config.vectors.texts = ("title", "author", "tags", "document")
    config.vectors.language = "english"
    config.vectors.dim = 1_024  # 256 tell words apart less well
    config.split.train_end = "2023-01-01"
    config.split.valid = 0.1
    config.split.test = 0.4
    return config
