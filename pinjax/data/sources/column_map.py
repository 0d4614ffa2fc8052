"""Column maps describe users' files to `pinjax.prepare`; here are all fields and their defaults.

The fields of a map determine the parts of the data set: timelines if it names users and their
times, pairs if it names searches or sequences, a graph if it names groups or, without these, tags.
"""

from collections.abc import Mapping
from typing import Any

import Stemmer
from ml_collections import ConfigDict

from pinjax import config_json
from pinjax.errors import InputError
from pinjax.settings import UINT32, Bool, Choice, Field, Float, Int, Row, Section, Size, Text, Tuple

# Microseconds in one.
UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 1e-3}
_UNIT = Choice("", *UNITS)
_COLUMN = Text(pattern=".+", expected="a column")


class _Value(Field):
    """A value to compare a column with."""

    expected = "a number or text"

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool | str) or Float().allows(value)


class _Delimiter(Field):
    """The delimiter between the fields of a line."""

    default, expected = ",", "one to four characters"

    def allows(self, value: Any) -> bool:
        return value == "\t" or (
            isinstance(value, str) and 0 < len(value) < 5 and value.isprintable()
        )


def default() -> Section:
    """A column map to start from; a config sets what its files need (see configs/prepare)."""
    config = Section()
    config.name = Text("log", ".+")  # the data set's name, as printed in tables
    # The share of what may be unusable, which is dropped and counted: of the rows of an events
    # file; for pairs, of the events whose item has no text or image in the catalogue's table, and
    # of the pairs whose query has no vector.
    config.tolerance = Float(0.0, at_least=0, below=1)

    events = config.events = _files()
    events.user = Text()  # a column of integer or text ids: then there are timelines
    events.item = Text("item", ".+")  # a column of integer or text ids
    events.time = Text()  # a column; "" where there are no times
    # Since 1970 in UTC; "" for timestamps, dates, ISO 8601 text (without a zone: UTC).
    events.time_unit = _UNIT
    # ISO 8601: earlier rows are dropped, say those with a placeholder date.
    events.since = Text()
    events.duration = Text()  # a column, null where unknown; "" for none
    events.duration_unit = Choice("s", *UNITS)
    events.surface = Tuple((), _COLUMN, at_least=0)  # joined as "a|b" where there are several
    # The action type comes from one of three; with none of them every row is an "action".
    events.action = Text()  # a column that names it
    events.action_by_file = Tuple(  # ((file name up to its first dot, type), ...)
        (), Row(file=Text(pattern=".+"), type=Text(pattern=".+")), at_least=0
    )
    # ((type, column, value), ...): the first that holds, else "unknown".
    events.action_rules = Tuple(
        (), Row(type=Text(pattern=".+"), column=_COLUMN, value=_Value()), at_least=0, distinct=False
    )
    events.least = Tuple(  # ((column, number), ...): rows with less are dropped
        (), Row(column=_COLUMN, number=Float()), at_least=0
    )
    events.query = Text()  # a column with the text of the search that led to the event
    events.group = Text()  # a column of boards, baskets or sessions: then there is a graph of them
    # Action types kept, most frequent first; the others become "unknown". Surfaces likewise.
    events.max_actions = Int(64, at_least=1, at_most=2**8 - 1)
    events.max_surfaces = Int(1_000, at_least=1, at_most=2**16 - 1)
    # A column of numbers that orders a sequence; "": by time, if there are times, then as rows lie.
    events.position = Text()

    timelines = config.timelines = Section()
    timelines.min_actions = Int(1, at_least=1)  # users with fewer have none; leave-one-out needs 3

    made = config.pairs = Section()
    # Whose items lead to the next ones; "": only searches lead to items.
    made.sequence = Choice("", "user", "group")
    made.ahead = Int(1, at_least=1, at_most=1_000)  # to how many next ones each item leads

    # Of the first file in --items; "FILE.column" is a column of another one, see `side`.
    catalogue = config.catalogue = _files()
    catalogue.id = Text("item", ".+")  # a column of ids, as in the events
    catalogue.repeats = Bool(False)  # whether ids may come again; an item's first row counts
    catalogue.created = Text()  # a column; "", null or later than it: the item's first event
    catalogue.created_unit = _UNIT
    catalogue.topic = Text()  # a column; "" with tags: the item's tag that the most items carry
    # A column of lists of numbers, one length; null or zeros: no content.
    catalogue.content = Text()
    # A column of tags, from which content vectors are made where there is no column of them.
    catalogue.tags = Text()
    # Columns that reports show, and nothing trains on: what people call an item, and where its
    # picture is, a URL.
    catalogue.name = Text()
    catalogue.image_url = Text()
    # Between the tags of one row; "": one tag a row, so ids may repeat, or a column of lists.
    catalogue.tag_separator = Text()
    catalogue.tag_dim = Size(64)  # numbers in a vector made from tags
    # ((text feature, column), ...), null where unknown.
    catalogue.texts = Tuple((), Row(feature=Text(pattern=".+"), column=_COLUMN), at_least=0)
    # A column of lists of numbers, one length, or of lists of such lists: an image or several.
    # Null or zeros: none. Without the column, an image is a vector that is made of the words.
    catalogue.images = Text()
    catalogue.keep_unseen = Bool(True)  # keep the items that have no event

    # The other files in --items, by name up to the first dot: config.sides.FILE = side(...).
    config.sides = Section()

    queries = config.queries = _files()  # of the table in --queries, if any
    queries.id = Text("query", ".+")  # texts of searches, or ids of items that lead to others
    queries.vector = Text("vector", ".+")  # a column of lists of numbers, one length

    vectors = config.vectors = Section()  # made where none are given
    vectors.texts = Tuple((), Text(pattern=".+"), at_least=0)  # text features whose words they are
    vectors.dim = Size(256)  # numbers in a vector
    # Of the words, as Snowball names it ("english"), to cut off their endings; "": they stay.
    vectors.language = Choice("", *Stemmer.algorithms())

    vocabulary = config.vocabulary = Section()  # tokens that are kept
    vocabulary.unigrams = Int(200_000, at_least=0)
    vocabulary.bigrams = Int(1_000_000, at_least=0)
    vocabulary.trigrams = Int(64_000, at_least=0)

    split = config.split = Section()
    # time: what is later than train_end is held out. leave_one_out: a user's last action tests, the
    # one before validates. random: by search, sequence or group. column: by `split.column`.
    split.kind = Choice("time", "leave_one_out", "random", "column")
    split.train_end = Text()  # ISO 8601: nothing later is trained on; "": split.test_days
    split.test_days = Float(28.0, above=0)  # days from train_end to the last event
    # Shares of the users, and of the searches, items or groups that lead to held-out pairs and
    # edges, by a hash of their ids. By time only the ratio of the two counts for the latter, and
    # with leave_one_out for cold items alone.
    split.valid = Float(0.1, at_least=0, below=1)
    split.test = Float(0.1, at_least=0, below=1)
    # Share of items without pairs and edges in training; tags are no edges in this sense.
    split.cold = Float(0.0, at_least=0, below=1)
    split.seed = Int(0, at_least=0, at_most=UINT32)  # of the hashes
    split.column = Text()  # of the events: true or 1 where the row tests
    return config


def of_histories(source: Mapping[str, Any] | None) -> ConfigDict:
    """The columns of the histories of users, as the log of a data set had them.

    Args:
      source: the column map of the data set, as JSON; None: columns user, item, time (unix
        seconds), action, surface and duration.
    """
    if source is None:
        config = default()
        config.events.update(user="user", time="time", action="action", duration="duration")
        config.events.update(time_unit="s", surface=("surface",))
    else:
        config = config_json.from_json(source)
    config.events.update(query="", group="", position="")
    config.pairs.sequence = config.split.column = ""
    return config


def side(
    on: str,
    id: str,
    partial: bool = False,
    delimiter: str = ",",
    quote: str = '"',
    header: tuple[str, ...] = (),
) -> Section:
    """A file to join to the items.

    Args:
      on: a column of the first file; null: the item has no row here.
      id: the column of this file that equals it, with distinct values.
      partial: whether rows may be missing; then their items have no values.
      delimiter: as of other files.
      quote: likewise.
      header: likewise.
    """
    section = _files()
    section.on, section.id, section.partial = Text(on, ".+"), Text(id, ".+"), Bool(partial)
    section.update(delimiter=delimiter, quote=quote, header=header)
    return section


def _files() -> Section:
    """The format of files other than Parquet, JSON lines and npz."""
    section = Section()
    section.delimiter = _Delimiter()
    section.quote = Text('"', ".?")  # what may be around a field; "": nothing
    # Whether a quoted field may hold line breaks. Where it may not, a file in which one does has
    # probably lost rows to a quote that is none, and is refused.
    section.multiline = Bool(False)
    section.header = Tuple((), _COLUMN, at_least=0)  # column names of a file without a header line
    return section


def parts(config: ConfigDict) -> tuple[str, ...]:
    """The parts of a data set with this map."""
    events = config.events
    named = {
        "timelines": events.user,
        "pairs": events.query or config.pairs.sequence,
        "graph": events.group or config.catalogue.tags,
    }
    return tuple(part for part, columns in named.items() if columns)


def check(config: ConfigDict, items: bool, queries: bool) -> None:
    """Rejects an inconsistent map, before anything is read.

    Args:
      config: a column map.
      items: whether there is a table of items.
      queries: whether there is a table of queries.

    Raises:
      InputError: naming the field.
    """
    events, catalogue, split = config.events, config.catalogue, config.split
    by_time, one_out = split.kind == "time", split.kind == "leave_one_out"
    made = parts(config)

    def expect(holds: bool, field: str, expected: str) -> None:
        if not holds:
            value = config
            for name in field.split("."):
                value = value[name]
            raise InputError(f"config.{field} is {value!r}; expected {expected}")

    expect(
        bool(made),
        "events.user",
        "a column, or events.query, events.group or catalogue.tags set: without them there is "
        "nothing to train on",
    )
    expect(bool(events.time) or not by_time, "events.time", "a column, to split by time")
    expect(not events.since or bool(events.time), "events.since", "'' without events.time")
    expect(not one_out or bool(events.user), "events.user", "a column, to leave out a user's last")
    expect(
        "timelines" not in made or by_time or one_out,
        "split.kind",
        "'time' or 'leave_one_out' with timelines, or events.user=''",
    )
    least = 3 if one_out else 1
    expect(config.timelines.min_actions >= least, "timelines.min_actions", f"{least} or more here")
    expect(bool(split.column) == (split.kind == "column"), "split.column", "as split.kind says")
    held_out = split.valid > 0 and split.test > 0
    expect(held_out or split.kind in ("leave_one_out", "column"), "split.valid", "above 0, as test")
    expect(split.valid + split.test < 1, "split.test", "a share that leaves some to train on")
    kinds = bool(events.action) + bool(events.action_by_file) + bool(events.action_rules)
    one_of = "only one of action, action_by_file and action_rules set"
    expect(kinds < 2, "events.action", one_of)
    if config.pairs.sequence:
        named = bool(events[config.pairs.sequence])
        expect(named, "pairs.sequence", f"'' without events.{config.pairs.sequence}")
    expect(
        not events.position or bool(config.pairs.sequence),
        "events.position",
        "'' without pairs.sequence",
    )
    expect(not (catalogue.tags and catalogue.content), "catalogue.tags", "'' beside content")
    expect(not queries or "pairs" in made, "queries.id", "no --queries without pairs")
    features = dict(catalogue.texts)
    cases = {name.lower() for name in features}
    expect(len(cases) == len(features), "catalogue.texts", "features that differ in more than case")
    known = all(name in features for name in config.vectors.texts)
    expect(known, "vectors.texts", f"some of {', '.join(features) or 'catalogue.texts'}")
    if not items:
        named = ("content", "tags", "texts", "images", "created", "topic", "name", "image_url")
        for name in named:
            expect(not catalogue[name], f"catalogue.{name}", "nothing without --items")
        expect("pairs" not in made or queries, "catalogue.id", "--items, or --queries, for pairs")
    if "pairs" in made and items:
        from_words = not catalogue.images or (events.query and not queries)
        expect(
            bool(config.vectors.texts) or not from_words,
            "vectors.texts",
            "features to make vectors from",
        )
