"""Amazon's reviews of beauty products, as S3Rec published them: a user and all items, a line.

These files become two tables first, in Python:

    import duckdb

    duckdb.sql('''
        COPY (
            SELECT row[1] AS user, unnest(row[2:]) AS item FROM (
                SELECT CAST(string_split(line, ' ') AS INT[]) AS row
                FROM read_csv('Beauty.txt', header = false, columns = {'line': 'VARCHAR'})
            )
        ) TO 'reviews.parquet';
        COPY (
            SELECT CAST(key AS INT) AS item, value AS attributes FROM (
                SELECT unnest(map_entries(CAST(json AS MAP(VARCHAR, VARCHAR[]))), recursive := true)
                FROM read_json_objects('Beauty_item2attributes.json')
            )
        ) TO 'attributes.parquet';
    ''')

python -m pinjax.prepare --config=configs/prepare/amazon_beauty.py \
    --events=reviews.parquet --items=attributes.parquet --out=DIR
python -m pinjax.train --config=configs/pinnerformer.py:ml1m --config.data.name=DIR \
    --config.data.positives=reviewed

Timelines by the published protocol: the last item of each user tests, the one before validates.
Attributes are tags: content vectors, and the graph of items and attributes.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "amazon-beauty"
    config.events.user = "user"
    config.events.action_by_file = (("reviews", "reviewed"),)
    config.timelines.min_actions = 3
    config.catalogue.tags = "attributes"
    config.split.kind = "leave_one_out"
    return config
