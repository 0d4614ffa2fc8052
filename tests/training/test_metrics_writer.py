import json

import pytest

from pinjax.training import metrics_writer


def test_nan_is_written_as_null(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": 0.5, "valid/R@10 cold": float("nan")})
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] == 0.5
    assert line["valid/R@10 cold"] is None


@pytest.mark.parametrize(
    "line", ['{"step": null}', '{"step": "one"}', '{"step": NaN}', "[1]", "[" * 100_000, '{"st']
)
def test_a_line_without_a_step_is_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with metrics_writer.MetricsWriter(tmp_path, 1) as writer:
        writer.write(2, {})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
