"""Rooms import each other in one direction, and files stay short."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "pinjax"
LONGEST = 350

# Which rooms a room may import, besides itself and the ground, which every room may import.
COMMANDS = {
    "serving",
    "ranking",
    "reporting",
    "compiler",
    "training",
    "systems",
    "data",
    "evaluation",
}
BELOW_SYSTEMS = {"data", "evaluation", "models", "losses", "graph", "retrieval", "distributed"}
ARROWS = {
    "commands": COMMANDS | {"retrieval", "distributed"},
    "serving": {"training", "systems"} | BELOW_SYSTEMS,
    "reporting": {"serving", "training", "systems"} | BELOW_SYSTEMS,
    "compiler": {"training", "systems", "retrieval", "distributed"},
    "training": {"systems", "distributed"},
    "ranking": {"data", "evaluation", "models"},
    "systems": BELOW_SYSTEMS,
    "evaluation": {"data", "retrieval", "distributed"},
    "data": {"graph"},
    "retrieval": set(),
    "models": {"distributed"},
    "losses": set(),
    "graph": set(),
    "distributed": set(),
    "ground": set(),
}
# If only some modules of a room may be imported, which: of `distributed`, models need only tables
# whose rows lie on many devices; of `systems`, training needs only the types.
MODULES = {
    "models": {"distributed": {"sharded_table"}},
    "training": {"systems": {"system"}},
    "compiler": {"systems": {"system", "registry"}},
}
GROUND = {
    *("checksums", "config_json", "errors", "files", "huge_pages", "ids"),
    *("ragged", "settings", "signals", "timestamps"),
}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(parts):
    """The room of a module, from the parts of its path below pinjax."""
    if len(parts) > 1:
        return parts[0]
    return "ground" if not parts or parts[0] in GROUND else "commands"


def imported(path):
    """The modules of pinjax that a file imports, as the parts of their paths below pinjax."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "pinjax":
                while parts and not (
                    ROOT.joinpath(*parts).is_dir()
                    or ROOT.joinpath(*parts).with_suffix(".py").exists()
                ):
                    parts.pop()  # a name in a module
                yield tuple(parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    name = path.relative_to(ROOT)
    room = room_of(name.with_suffix("").parts)
    for parts in imported(path):
        target = room_of(parts)
        full = ".".join(("pinjax", *parts))
        if target in (room, "ground"):
            continue
        assert target in ARROWS[room], f"{name} imports {full}"
        modules = MODULES.get(room, {}).get(target)
        assert modules is None or parts[1] in modules, f"{name} imports {full}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST


def test_pages_of_systems_are_shorter():
    """Each reads beside its paper."""
    for name in ("pinnerformer", "itemsage", "searchsage", "pinnersage", "pinsage"):
        assert len((ROOT / "systems" / f"{name}.py").read_text().splitlines()) < 300
