"""Column maps: what `pinjax.prepare` has to know about one's files, with every field's default."""

import functools

import ml_collections
import Stemmer

from pinjax.errors import InputError

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds in one


def default() -> ml_collections.ConfigDict:
    """A column map to start from; a config sets what its log needs (see configs/prepare)."""
    config = ml_collections.ConfigDict()
    config.kind = "timelines"  # what is made of it, for PinnerFormer; see also `engagements`
    config.name = "log"  # the data set's name, as printed in tables
    config.delimiter = ","  # of CSV files; Parquet needs none
    config.tolerance = 0.0  # share of a file's rows that may be unusable: dropped and counted
    config.min_actions = 1  # users with fewer are dropped; leave-one-out needs 3
    config.max_actions = 64  # action types kept, most frequent first; the rest become "unknown"
    config.max_surfaces = 1000  # surfaces kept, likewise

    events = config.events = ml_collections.ConfigDict()
    events.header = ()  # column names of a CSV file that has no header line
    events.user = "user"  # integer or text ids
    events.item = "item"  # integer or text ids
    events.time = "time"  # "" where the log's order is all there is (leave-one-out only)
    events.time_unit = ""  # s, ms or us since 1970 in UTC; "" for timestamps, dates, ISO 8601 text
    events.since = ""  # ISO 8601: earlier rows are dropped, say those with a placeholder date
    events.duration = ""  # a column, null where unknown; "" for none
    events.duration_unit = "s"  # s, ms or us
    events.surface = ()  # columns, joined as "a|b" where there are several
    # The action type comes from one of three; with none of them every row is an "action".
    events.action = ""  # a column that names it
    events.action_by_file = ()  # ((file name without its suffix, type), ...)
    events.action_rules = ()  # ((type, column, value), ...): the first that holds, else "unknown"

    catalogue = config.catalogue = ml_collections.ConfigDict()  # of the table in --items, if any
    catalogue.id = "item"  # integer or text ids, as in the log
    catalogue.created = ""  # a column; "" or null: the item's first action
    catalogue.created_unit = ""  # as events.time_unit
    catalogue.topic = ""  # a column; "" with tags: the item's tag that the most items carry
    catalogue.content = ""  # a column of lists of numbers, one length; null: no content
    catalogue.tags = ""  # a text column, from which content vectors are made
    catalogue.tag_separator = ""  # between the tags of one row; "": a tag a row, so ids may repeat
    catalogue.tag_dim = 64  # numbers in a vector made from tags
    catalogue.keep_unseen = True  # keep the items that have no action in the log

    split = config.split = ml_collections.ConfigDict()
    split.kind = "time"  # time, or leave_one_out: last action tests, the one before validates
    split.train_end = ""  # ISO 8601: nothing later is trained on; "": split.test_days
    split.test_days = 28.0  # days from train_end to the newest action
    split.valid = 0.1  # share of users, by a hash of their ids
    split.test = 0.1  # share of users
    split.seed = 0  # of that hash
    return config


def engagements() -> ml_collections.ConfigDict:
    """A column map of engagements and products, for ItemSage and SearchSage."""
    config = ml_collections.ConfigDict()
    config.kind = "engagements"
    config.name = "log"  # the data set's name, as printed in tables
    config.delimiter = ","  # of CSV files; Parquet and npz need none
    # The share of what may be unusable, dropped and counted: of an events file's rows and, where
    # vectors of queries are given, as a table or as images of items, of pairs whose query has none.
    config.tolerance = 0.0

    events = config.events = ml_collections.ConfigDict()
    events.header = ()  # column names of a CSV file that has no header line
    events.item = "item"  # integer or text ids, each in the table of items
    events.time = ""  # "" where there are no times: then the split is by a hash
    events.time_unit = ""  # s, ms or us since 1970 in UTC; "" for timestamps, dates, ISO 8601 text
    events.since = ""  # ISO 8601: earlier rows are dropped, say those with a placeholder date
    # The kind of engagement, as in `default`; with none of them every row is an "action".
    events.action = ""
    events.action_by_file = ()
    events.action_rules = ()
    events.least = ()  # (column, number): rows with less are dropped
    # What led to the engagement is one of two: a search, or an item before it.
    events.query = ""  # a column with the text of the search
    events.group = ""  # a column of baskets or sequences: integer or text ids
    # A column of numbers that orders a group; "": by time, if there are times, then as rows lie.
    events.position = ""
    events.ahead = 1  # an item is a query for each of so many next ones of its group

    # Of the first file in --items; "FILE.column" is a column of another one, see `sides`.
    catalogue = config.catalogue = ml_collections.ConfigDict()
    catalogue.header = ()  # column names of a CSV file that has no header line
    catalogue.id = "item"
    catalogue.repeats = False  # whether ids may come again; then an item's first row counts
    catalogue.texts = ()  # ((text feature, column), ...), null where unknown
    # A column of lists of numbers, one length, or of lists of such lists: an image or several.
    # Null or zeros: none. Without the column, an image is a vector that is made of the words.
    catalogue.images = ""
    catalogue.created = ""  # a column; "", null or later than it: the item's first engagement
    catalogue.created_unit = ""  # as events.time_unit
    catalogue.topic = ""  # a column

    # The other files in --items, by name up to the first dot: config.sides.FILE = side(...).
    config.sides = ml_collections.ConfigDict()

    queries = config.queries = ml_collections.ConfigDict()  # of the table in --queries, if any
    queries.id = "query"  # texts of searches, or ids of items that lead to others; each once
    queries.vector = "vector"  # a column of lists of numbers, one length

    vectors = config.vectors = ml_collections.ConfigDict()  # made where none are given
    vectors.texts = ()  # the text features from whose words they are made
    vectors.dim = 256  # numbers in a vector
    # Of the words, as Snowball names it ("english"), to cut off their endings; "": they stay.
    vectors.language = ""

    vocabulary = config.vocabulary = ml_collections.ConfigDict()  # tokens that are kept
    vocabulary.unigrams = 200_000
    vocabulary.bigrams = 1_000_000
    vocabulary.trigrams = 64_000

    split = config.split = ml_collections.ConfigDict()
    split.train_end = ""  # ISO 8601: nothing later is trained on; "": split.test_days
    split.test_days = 28.0  # days from train_end to the newest engagement
    split.valid = 0.1  # share of searches or groups; with times, of the later engagements' queries
    split.test = 0.1  # likewise; with times only the ratio of the two counts
    split.cold = 0.05  # share of items, by a hash of their ids, without engagements in training
    split.seed = 0  # of the hashes
    return config


def side(
    on: str, id: str, partial: bool = False, delimiter: str = ",", header: tuple[str, ...] = ()
) -> ml_collections.ConfigDict:
    """A file in which something is looked up for each item.

    Args:
      on: a column of the first file; null: nothing is known of the item.
      id: the column of this file that equals it, each value once.
      partial: whether rows may be missing; then nothing is known of their items.
      delimiter: of a CSV file; with several characters, quotes mean nothing.
      header: column names of a CSV file that has no header line.
    """
    fields = {"on": on, "id": id, "partial": partial, "delimiter": delimiter, "header": header}
    return ml_collections.ConfigDict(fields)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses values that are right for no log.

    Raises:
      InputError: naming the field.
    """
    events, catalogue, split = config.events, config.catalogue, config.split
    expect = functools.partial(_expect, config)
    by_time = split.kind == "time"
    expect(by_time or split.kind == "leave_one_out", "split.kind", "'time' or 'leave_one_out'")
    expect(0 < split.valid < 1, "split.valid", "a share of the users, above 0")
    expect(0 < split.test < 1 - split.valid, "split.test", "a share above 0, and users to train on")
    expect(bool(events.time) or not by_time, "events.time", "a column, to split by time")
    fewest = 1 if by_time else 3
    expect(config.min_actions >= fewest, "min_actions", f"{fewest} or more with this split")
    expect(0 <= config.tolerance < 1, "tolerance", "a share of the rows, from 0 to below 1")
    expect(0 < config.max_actions < 2**8, "max_actions", "1 to 255")
    expect(0 < config.max_surfaces < 2**16, "max_surfaces", "1 to 65,535")
    expect(events.duration_unit in UNITS, "events.duration_unit", "s, ms or us")
    for field, unit in (
        ("events.time_unit", events.time_unit),
        ("catalogue.created_unit", catalogue.created_unit),
    ):
        expect(unit in ("", *UNITS), field, "s, ms, us, or '' for timestamps and text")
    _check_action(config)
    expect(
        not (catalogue.tags and catalogue.content), "catalogue.tags", "'' beside a content column"
    )


def check_engagements(config: ml_collections.ConfigDict, own_queries: bool = False) -> None:
    """Refuses values that are right for no engagements.

    Args:
      config: a column map.
      own_queries: whether a table gives the vectors of queries.

    Raises:
      InputError: naming the field.
    """
    events, catalogue, split = config.events, config.catalogue, config.split
    expect = functools.partial(_expect, config)
    expect(0 < split.valid < 1, "split.valid", "a share above 0")
    expect(0 < split.test < 1 - split.valid, "split.test", "a share above 0, and some to train on")
    expect(0 <= split.cold < 1, "split.cold", "a share of the items, from 0 to below 1")
    expect(0 <= config.tolerance < 1, "tolerance", "a share of the rows, from 0 to below 1")
    for field, unit in (
        ("events.time_unit", events.time_unit),
        ("catalogue.created_unit", catalogue.created_unit),
    ):
        expect(unit in ("", *UNITS), field, "s, ms, us, or '' for timestamps and text")
    for field, value in (
        ("events.since", events.since),
        ("catalogue.created", catalogue.created),
    ):
        expect(bool(events.time) or not value, field, "'' without events.time")
    _check_action(config)
    expect(len(events.least) in (0, 2), "events.least", "(column, number) or ()")
    expect(
        bool(events.query) != bool(events.group), "events.query", "either it or events.group set"
    )
    expect(events.ahead >= 1, "events.ahead", "1 or more")
    features = dict(catalogue.texts)
    expect(len(features) == len(catalogue.texts), "catalogue.texts", "each feature once")
    known = all(name in features for name in config.vectors.texts)
    expect(known, "vectors.texts", f"some of {', '.join(features) or 'catalogue.texts'}")
    made = (bool(events.query) and not own_queries) or not catalogue.images
    expect(bool(config.vectors.texts) or not made, "vectors.texts", "features to make vectors from")
    expect(config.vectors.dim >= 1, "vectors.dim", "1 or more")
    languages = Stemmer.algorithms()
    known = config.vectors.language in ("", *languages)
    expect(known, "vectors.language", f"one of {', '.join(languages)}")


def _expect(config: ml_collections.ConfigDict, holds: bool, field: str, expected: str) -> None:
    if not holds:
        value = config
        for name in field.split("."):
            value = value[name]
        raise InputError(f"config.{field} is {value!r}; expected {expected}")


def _check_action(config: ml_collections.ConfigDict) -> None:
    events = config.events
    others = bool(events.action) + bool(events.action_by_file) + bool(events.action_rules)
    expected = "only one of action, action_by_file and action_rules set"
    _expect(config, others < 2, "events.action", expected)
