"""Instacart: 131,000 grocery baskets, an item and the one that was put in after it.

python -m pinjax.prepare --config=configs/prepare/instacart.py \
    --events=order_products__train.parquet \
    --items=products.parquet,aisles.parquet,departments.parquet --out=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    --config.loss.sketch_width=4194304 \
    '--config.tasks=(("image/reorder", 1.0, 0), ("image/add", 1.0, 0))' \
    '--config.model.texts=(("name", "name"), ("aisle", "aisle"), ("department", "department"))'

Vectors are made of the words of all three.
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.engagements()
    config.name = "instacart"
    config.events.item = "product_id"
    config.events.group = "order_id"
    config.events.position = "add_to_cart_order"
    config.events.ahead = 1
    config.events.action_rules = (("add", "reordered", 0), ("reorder", "reordered", 1))
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
    return config
