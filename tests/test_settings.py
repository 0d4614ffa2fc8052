"""Fields of a config accept what their declarations allow, and nothing else."""

import math

import pytest

from pinjax import settings
from pinjax.errors import InputError
from pinjax.settings import Bool, Choice, Float, Int, Row, Section, Size, Text, Tuple

NAN, INF = math.nan, math.inf
ROW = Row(name=Text(pattern="[a-z]+", expected="a word"), weight=Float(above=0))


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        (Bool(False), [True, False], [0, 1, 0.0, "True", None, ()]),
        (
            Int(3, at_least=0),
            [0, 3, 2**31 - 1],
            [-1, 2**31, 10**400, 3.0, True, NAN, INF, "3", None, (3,)],
        ),
        (Int(3, at_least=-5, at_most=7), [-5, 7], [-6, 8]),
        (
            Int(8, at_least=2, at_most=16, power_of_two=True),
            [2, 4, 8, 16],
            [1, 3, 12, 32, 0, -2],
        ),
        (Size(3), [1, 2**16], [0, 2**16 + 1]),
        (Size(3, at_least=0), [0], [-1]),
        (Float(0.5), [-1e38, 0, 1e38], [NAN, INF, -INF, 1e39, 10**400, True, "0.5", None]),
        (Float(0.5, at_least=0, below=1), [0, 0.0, 0.999], [-1e-9, 1, 1.0, NAN]),
        (Float(0.5, above=0, at_most=1), [1e-9, 1], [0, 0.0, 1.0000001, NAN]),
        (Choice("a", "b"), ["a", "b"], ["c", "", "A", 1, None, ("a",)]),
        (Text("x"), ["", "y", "söme/path"], [1, None, b"x", "a\nb", "a\0", "\udcff"]),
        (Text("", "(valid/.+)?"), ["", "valid/R@10"], ["R@10", "valid/", "xvalid/R"]),
        (
            Tuple((1.0,), Float(above=0), at_least=1),
            [(2,), (1.0, 2.0)],
            [(), (1, 1.0), (0,), (NAN,), ("1",), (None,), ((1.0,),), 1.0, "1", None, {1.0: 1}],
        ),
        (Tuple((), Choice("a", "b"), at_least=0), [(), ("b", "a")], [("a", "a"), ("c",), "a"]),
        (
            Tuple((("a", 1.0),), ROW, at_least=1),
            [(("a", 1.0), ("b", 1.0))],
            [(("a", 1.0), ("a", 2.0)), (("a",),), (("a", 0),), (("a", 1.0, 2),), ("a", 1.0)],
        ),
    ],
)
def test_a_field_takes_what_it_allows_alone(field, allowed, refused):
    config = Section()
    part = config.part = Section()
    part.field = field
    assert part.field == field.default
    for value in allowed:
        part.field = value
        assert part.field == value
        assert type(part.field) is type(field.default)
    last = part.field
    for value in refused:
        for assign in (
            lambda value=value: setattr(part, "field", value),
            lambda value=value: part.update(field=value),
            lambda value=value: config.update({"part": {"field": value}}),
        ):
            with pytest.raises(InputError, match=r"part.field=") as error:
                assign()
            assert f"expected {field.expected}" in str(error.value)
    assert part.field == last


def test_a_default_is_checked_too():
    with pytest.raises(InputError, match=r"steps=0: expected an integer from 1 to 10 \(steps\)"):
        Section().steps = Int(0, at_least=1, at_most=10, unit="steps")


def test_values_are_plain():
    config = Section()
    part = config.part = Section()
    part.count, part.rate = Int(3, at_least=1), Float(1, at_least=0)
    part.pairs = Tuple([["a", 1]], ROW, at_least=0)
    assert config.to_dict() == {"part": {"count": 3, "rate": 1.0, "pairs": (("a", 1.0),)}}
    assert config.to_json() == '{"part": {"count": 3, "rate": 1.0, "pairs": [["a", 1.0]]}}'
    assert config.copy_and_resolve_references() == config


def make():
    config = Section()
    config.name = Text("x")
    train = config.train = Section()
    train.steps, train.rate = Int(3, at_least=1), Float(0.5, above=0)
    train.fast, train.days = Bool(False), Tuple((0.0,), Float(), at_least=1)
    train.kinds = Tuple(("a",), Choice("a", "b"), at_least=1)
    settings.check(config)
    return config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("name", "a=b, c", "a=b, c"),
        ("train.steps", "7", 7),
        ("train.rate", "2", 2.0),
        ("train.rate", "1e-3", 1e-3),
        ("train.fast", "true", True),
        ("train.fast", "False", False),
        ("train.days", "(1, 2.5)", (1.0, 2.5)),
        ("train.days", "[1]", (1.0,)),
        ("train.days", "3", (3.0,)),
        ("train.kinds", "('b', 'a')", ("b", "a")),
        ("train.kinds", "b", ("b",)),
    ],
)
def test_an_override_is_read_as_its_field(name, text, value):
    config = make().lock()
    settings.override(config, name, text)
    assert config[name] == value
    assert type(config[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.steps", "0", "train.steps=0: expected an integer from 1 to 2,147,483,647"),
        ("train.steps", "1.5", "train.steps='1.5': expected an integer"),
        ("train.steps", "", "train.steps='': expected an integer"),
        ("train.steps", "9" * 5_000, "train.steps='999"),
        ("train.rate", "nan", "train.rate=nan: expected a number above 0"),
        ("train.fast", "maybe", "train.fast='maybe': expected True or False"),
        ("train.days", "()", r"train.days=\(\): expected a tuple of at least 1"),
        ("train.days", "(1, 2", r"train.days=\('\(1, 2',\): expected"),
        ("train.days", "(" * 5_000, "train.days="),
        ("train.days", "{1: 2}", "train.days="),
        ("train.stepz", "1", "--config.train.stepz: no such field; did you mean train.steps?"),
        ("steps", "1", "--config.steps: no such field"),
        ("train", "1", "--config.train is a section; expected a field such as train.days"),
        ("", "1", "--config.: no such field"),
        ("train.steps.more", "1", "no such field; did you mean train.steps?"),
    ],
)
def test_a_wrong_override_is_refused(name, text, message):
    config = make().lock()
    with pytest.raises(InputError, match=message):
        settings.override(config, name, text)
    assert config == make().lock()


def test_what_is_not_declared_is_refused():
    config = make()
    config.train.stepz = 3
    with pytest.raises(
        InputError, match=r"field train.stepz is not declared; did you mean train.s"
    ):
        settings.check(config)
    config = make()
    config.other = {"field": 3}
    with pytest.raises(InputError, match=r"other.field is not declared; declare its type and"):
        settings.check(config)


def test_a_declared_field_cannot_be_left_out():
    config = make()
    del config.train.steps
    with pytest.raises(InputError, match=r"the config's field train.steps was deleted"):
        settings.check(config)


def test_a_field_that_is_missing_is_named():
    config = make()
    assert not hasattr(config.train, "step")
    with pytest.raises(InputError, match=r"no field train.step; did you mean steps\?"):
        _ = config.train.step


def test_names_are_suggested():
    assert settings.named({"paper": 1, "test": 2}, "test") == 2
    with pytest.raises(InputError, match=r"variant 'papr' is none of paper, test; did you mean pa"):
        settings.named({"paper": 1, "test": 2}, "papr")
