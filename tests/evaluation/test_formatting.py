import doctest
import math

from pinjax.evaluation import formatting
from pinjax.evaluation.metrics import Estimate


def test_doctest():
    assert doctest.testmod(formatting).failed == 0


def test_cells_and_missing_ones():
    text = formatting.format_table(
        [
            ("popularity", {"R@10": Estimate(0.02, 0.019, 0.021), "cov": Estimate(float("nan"))}),
            ("ours", {"R@10": Estimate(0.2293, 0.2262, 0.2324), "queries/s": Estimate(12345.6)}),
            ("nothing", {"R@10": Estimate(0.0, 0.0, 0.1608)}),
            ("alone", {"R@10": Estimate(0.5)}),
            ("always", {"R@10": Estimate(0.3, 0.3, 0.3 + 1e-16)}),
        ]
    )
    assert text.splitlines() == [
        "method      R@10                     cov  queries/s",
        "popularity  0.0200 ± 0.0010            -          -",
        "ours        0.2293 ± 0.0031            -     12,346",
        "nothing     0.0000 [0.0000, 0.1608]    -          -",
        "alone       0.5000                     -          -",
        "always      0.3000 ± 0.0000            -          -",
    ]


def test_columns_beyond_the_width_follow_below():
    metrics = {f"metric {i}": Estimate(i / 7, i / 7 - 0.01, i / 7 + 0.01) for i in range(9)}
    lines = formatting.format_table([("a", metrics), ("b", metrics)], width=60).splitlines()
    assert max(map(len, lines)) <= 60
    headers = [line for line in lines if line.startswith("method")]
    names = [name.strip() for line in headers for name in line.split("  ")[1:] if name.strip()]
    assert names == list(metrics)


def test_methods_without_any_of_the_columns_below_are_left_out_there():
    both = {f"metric {i}": Estimate(0.5, 0.49, 0.51) for i in range(2)}
    rows = [("ours", both | {"queries/s": Estimate(9e3)}), ("popularity", both)]
    assert formatting.format_table(rows, width=52).splitlines()[-3:] == [
        "",
        "method  queries/s",
        "ours        9,000",
    ]


def test_columns_that_nobody_has_anything_in():
    rows = [
        ("ours", {"R@10 cold": Estimate(math.nan)}),
        ("oracle", {"R@10 cold": Estimate(math.nan)}),
    ]
    assert formatting.format_table(rows).splitlines() == [
        "method  R@10 cold",
        "ours            -",
        "oracle          -",
    ]


def test_no_rows():
    assert formatting.format_table([]) == "method"
