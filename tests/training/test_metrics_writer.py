import json

from pinjax.training import metrics_writer


def test_nan_is_written_as_null(tmp_path):
    with metrics_writer.MetricsWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": 0.5, "valid/R@10 cold": float("nan")})
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["loss"] == 0.5
    assert line["valid/R@10 cold"] is None
