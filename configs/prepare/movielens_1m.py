"""MovieLens-1M as SASRec published it: one "user item" a line, in order, without times.

python -m pinjax.prepare --config=configs/prepare/movielens_1m.py --events=ml-1m.txt.gz \
    --items=sas_to_original_items.txt,movies_extrainfos.dat,poster_features.npz --out=DIR
python -m pinjax.train --config=configs/pinnerformer.py:ml1m --config.data.name=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    '--config.tasks=(("image/rated", 1.0, 0),)' \
    '--config.model.texts=(("title", "title"), ("genres", "genres"), ("cast", "cast"),
                           ("plot", "plot"))'

By the published protocol the last film of each user tests, and the one before validates, both in
timelines and in pairs of a film and the one that the same user rated next. A film's image is the
vector of its poster; one pair in 665 is dropped, whose query has no poster.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "movielens-1m"
    config.tolerance = 0.002  # pairs whose query has no poster
    config.events.delimiter = " "
    config.events.header = ("user", "item")
    config.events.user = "user"
    config.events.action_by_file = (("ml-1m", "rated"),)
    config.timelines.min_actions = 3
    config.pairs.sequence = "user"
    config.catalogue.delimiter = " "
    config.catalogue.header = ("item", "movie")
    config.catalogue.texts = tuple(
        (name, f"movies_extrainfos.{name}") for name in ("title", "genres", "cast", "plot")
    )
    config.catalogue.images = "poster_features.features"
    config.sides.movies_extrainfos = column_map.side(
        on="movie",
        id="movie",
        partial=True,  # one film is not in it
        delimiter="::",
        quote="",  # of titles in plots
        header=(
            *("movie", "title", "year", "rating", "released", "genres", "director", "writers"),
            *("cast", "plot", "poster"),
        ),
    )
    config.sides.poster_features = column_map.side(on="movie", id="movie_id", partial=True)
    config.split.kind = "leave_one_out"
    return config
