"""Home Depot's search relevance: 74,000 judged pairs of a search and a product.

python -m pinjax.prepare --config=configs/prepare/homedepot.py \
    --events=train.parquet --items=train.parquet --out=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    '--config.tasks=(("text/relevant", 1.0, 0),)' '--config.model.texts=(("title", "title"),)' \
    --config.model.embedding_dim=3072 --config.model.residual=True
python -m pinjax.train --config=configs/searchsage.py --config.data.name=DIR \
    '--config.tasks=(("text/relevant", 1.0, 50),)' --config.model.residual=True

Pairs alone: a product is engaged with where its relevance, from 1 to 3 and the mean of several
judges, is at least 2.33. Entire searches are held out. Vectors are made of the words of titles.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "homedepot"
    config.events.item = "product_uid"
    config.events.query = "search_term"
    config.events.least = (("relevance", 2.33),)
    config.events.action_by_file = (("train", "relevant"),)
    config.catalogue.id = "product_uid"
    config.catalogue.repeats = True  # a row for each search; few products have two titles
    config.catalogue.texts = (("title", "product_title"),)
    config.vectors.texts = ("title",)
    config.vectors.language = "english"
    config.vectors.dim = 3_072  # fewer tell words apart less well
    config.split.kind = "random"
    config.split.cold = 0.05
    return config
