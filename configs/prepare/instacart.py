"""Instacart: 131,000 grocery baskets, an item and the one that was put in after it.

python -m pinjax.prepare --config=configs/prepare/instacart.py \
    --events=order_products__train.parquet \
    --items=products.parquet,aisles.parquet,departments.parquet --out=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    --config.model.embedding_dim=1024 --config.model.residual=True \
    --config.loss.sketch_width=4194304 \
    '--config.tasks=(("image/reorder", 1.0, 0), ("image/add", 1.0, 0))' \
    '--config.model.texts=(("name", "name"), ("aisle", "aisle"), ("department", "department"))'

Pairs of neighbours in a basket; the graph of products and baskets. Entire baskets are held out, and
a 20th of the products has neither pairs nor edges in training. Vectors are made of the words of all
three texts.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "instacart"
    config.events.item = "product_id"
    config.events.group = "order_id"
    config.events.position = "add_to_cart_order"
    config.events.action_rules = (("add", "reordered", 0), ("reorder", "reordered", 1))
    config.pairs.sequence = "group"
    config.catalogue.id = "product_id"
    config.catalogue.texts = (
        ("name", "product_name"),
        ("aisle", "aisles.aisle"),
        ("department", "departments.department"),
    )
    config.sides.aisles = column_map.side(on="aisle_id", id="aisle_id")
    config.sides.departments = column_map.side(on="department_id", id="department_id")
    config.vectors.texts = ("name", "aisle", "department")
    config.vectors.language = "english"
    config.vectors.dim = 1_024  # 256 tell words apart less well
    config.split.kind = "random"
    config.split.cold = 0.05
    return config
