"""How a table is written and printed."""

import json
import math

from pinjax import results
from pinjax.evaluation import tables
from pinjax.evaluation.metrics import Estimate

TABLE = tables.Table(
    rows=[
        tables.Row("ours", {"R@10": Estimate(0.5, 0.25, 0.75), "entropy@50": Estimate(math.nan)}),
        tables.Row("popularity", {"R@10": Estimate(0.0, 0.0, 0.125)}),
    ],
    notes=["20 users, 50 labels"],
)


def test_the_file_is_json_that_any_reader_takes(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    results.write(tmp_path, "test", 7, TABLE)
    text = (tmp_path / "results_test.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "step": 7,
        "rows": {
            "ours": {"R@10": [0.5, 0.25, 0.75], "entropy@50": [None, None, None]},
            "popularity": {"R@10": [0.0, 0.0, 0.125]},
        },
        "notes": ["20 users, 50 labels"],
    }


def test_notes_are_printed_below():
    lines = results.table(TABLE).splitlines()
    assert lines[0].split() == ["method", "R@10", "entropy@50"]
    assert lines[-2:] == ["", "20 users, 50 labels"]
