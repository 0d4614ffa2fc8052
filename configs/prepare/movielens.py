"""MovieLens-1M in SASRec's order: a film and the one that the same user rated after it.

python -m pinjax.prepare --config=configs/prepare/movielens.py --events=ml-1m.txt.gz \
    --items=sas_to_original_items.txt,movies_extrainfos.dat,poster_features.npz --out=DIR
python -m pinjax.train --config=configs/itemsage.py --config.data.name=DIR \
    '--config.tasks=(("image/rated", 1.0, 0),)' \
    '--config.model.texts=(("title", "title"), ("genres", "genres"), ("cast", "cast"),
                           ("plot", "plot"))'

A film's image is the vector of its poster. One pair in 665 is dropped, whose query has no poster.
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.engagements()
    config.name = "movielens"
    config.delimiter = " "
    config.tolerance = 0.002
    config.events.header = ("user", "item")
    config.events.group = "user"
    config.events.action_by_file = (("ml-1m.txt", "rated"),)
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
        header=(
            *("movie", "title", "year", "rating", "released", "genres", "director", "writers"),
            *("cast", "plot", "poster"),
        ),
    )
    config.sides.poster_features = column_map.side(on="movie", id="movie_id", partial=True)
    return config
