"""The content of a report, as page.js reads it."""

from collections.abc import Sequence
from typing import Any

from pinjax import config_json
from pinjax.evaluation import formatting, tables
from pinjax.reporting import blocks, breakdowns, curves, figures, results, spread
from pinjax.reporting.blocks import Block
from pinjax.reporting.opened import Group, Opened
from pinjax.reporting.runs import Run


def content(runs: Sequence[Run], verify: bool = True) -> dict[str, Any]:
    """The content of a page.

    Args:
      runs: to report on; what is missing is added to their notes.
      verify: whether checksums are compared.
    """
    opened = Opened(runs, verify)
    shown = list({id(group.shown): group.shown for group in opened.groups}.values())
    place = {id(of_dataset): str(i) for i, of_dataset in enumerate(shown)}
    no_records = "There are no records: see the overview for the command that makes them."
    not_opened = "No run could be opened: the overview says why."
    tabs = [
        ("overview", "Overview", _overview(runs), ""),
        ("training", "Training", curves.tab(runs), "There is no metrics.jsonl of these runs."),
        ("results", "Results", results.tab(runs), no_records),
        ("breakdowns", "Where it works", breakdowns.tab(runs), no_records),
        ("coverage", "Coverage", _spread(opened.groups), no_records),
        ("logq", "logQ", opened.calibrations, "Nothing is counted in sketches by these runs."),
        ("map", "Map", opened.maps, not_opened),
        ("users", "Users", [_users(group, place) for group in opened.groups if group.users], ""),
        ("items", "Items", [_items(group, place) for group in opened.groups], not_opened),
    ]
    return {
        "title": ", ".join(run.name for run in runs),
        "runs": [{"name": run.name, "colour": figures.colour(i)} for i, run in enumerate(runs)],
        "tabs": [
            {"id": id_, "title": title, "blocks": made, "empty": empty or no_records}
            for id_, title, made, empty in tabs
        ],
        "items": {place[id(of_dataset)]: of_dataset.to_json() for of_dataset in shown},
    }


def _overview(runs: Sequence[Run]) -> list[Block]:
    made = [{"type": "cards", "cards": [_card(i, run) for i, run in enumerate(runs)]}]
    missing = [f"{run.name}: {line}" for run in runs for line in run.missing]
    if missing:
        made.append(blocks.notes("What this report lacks", missing))
    fields = [config_json.flat(run.config["config"]) if run.config else {} for run in runs]
    names = dict.fromkeys(name for of_run in fields for name in of_run)
    rows = [[name, *(str(of_run.get(name, "")) for of_run in fields)] for name in names]
    title = "Settings"
    if len(runs) > 1:
        title, rows = "Settings that differ", [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        table = blocks.table(title, "", ["", *(run.name for run in runs)], rows)
        made.append(table | {"folded": True})
    return made


def _card(number: int, run: Run) -> Block:
    card = {"title": run.name, "colour": figures.colour(number), "lines": [run.system]}
    split = run.split or next(iter(run.results), None)
    if split in run.results:
        result = run.results[split]
        name, rows = run.system, result["rows"]
        cells = results.estimates(rows[name] if name in rows else next(iter(rows.values())))
        card |= blocks.cell(cells["R@10"]) or {}
        card["label"] = f"R@10, {split}"
        for metric, words in ((tables.DIFFERENCE, "over the best baseline"), (tables.SHARE, "")):
            if metric in cells:
                value, interval = formatting.cell(cells[metric])
                card["lines"].append(f"{value} {interval} {words or metric}")
        counted, *others = result["notes"]
        card["lines"] += [counted, *(line for line in others if line.startswith(tables.WARNING))]
        if result["step"]:
            card["lines"].append(f"step {result['step']:,}")
    if run.config:
        card["lines"].append(f"data set {run.config['config']['data']['name']}")
    return card


def _spread(groups: Sequence[Group]) -> list[Block]:
    made = []
    for group in groups:
        if group.users and len(group.users.counted) > 1:
            who = f"{len(group.users.everybody):,} {group.nouns} of the evaluation"
            made += spread.tab(group.users.counted, group.shown.dataset.catalogue.counts, who)
    return made


def _users(group: Group, place: dict[int, str]) -> Block:
    users = group.users
    told = f"{len(users.ids):,} {group.nouns} of the evaluation, drawn at random."
    return {
        "type": "users",
        "told": told,
        "items": place[id(group.shown)],
        "kinds": users.kinds,
        "users": users.entries,
    }


def _items(group: Group, place: dict[int, str]) -> Block:
    told = f"{len(group.items):,} items, half of them the most popular, the others at random."
    return {
        "type": "items",
        "told": told,
        "items": place[id(group.shown)],
        "runs": group.runs,
        "places": group.shown.places_of_ids(group.items),
        "neighbours": group.neighbours,
    }
