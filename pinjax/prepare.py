"""Prepares a log of one's own: Parquet or CSV in, a data set on disk out.

    python -m pinjax.prepare --config=configs/prepare/ifdb.py \
        --events=played.parquet --events=wishlists.parquet --items=tags.parquet --out=DIR

The config is a column map, `pinjax.data.column_map.default()` says what it may hold; any field
may be overridden as --config.section.field=value.
"""

import time
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_flags

from pinjax import app
from pinjax.data import prepared, schema

_CONFIG = config_flags.DEFINE_config_file("config", None, "column map", lock_config=True)
_EVENTS = flags.DEFINE_multi_string(
    "events", None, "file of actions, Parquet or CSV; several, in order: repeat it, or use commas"
)
_ITEMS = flags.DEFINE_string("items", None, "file of items, Parquet or CSV")
_OUT = flags.DEFINE_string("out", None, "directory of the data set, not there yet")
flags.mark_flags_as_required(["config", "events", "out"])


def main(argv: Sequence[str]) -> int:
    del argv
    started = time.monotonic()
    events = ",".join(_EVENTS.value).split(",")
    metadata, is_new = prepared.prepare(events, _ITEMS.value, _OUT.value, _CONFIG.value)
    print(_table(metadata.report))
    done = f"prepared in {time.monotonic() - started:.1f} s" if is_new else "already prepared"
    print(f"\n{done}: {_OUT.value}\nnext: {_next_command(metadata)}")
    return 0


def _table(report: Mapping[str, int | str]) -> str:
    """The report as two columns; what came to nothing is left out."""
    cells = {
        name: f"{value:,}" if isinstance(value, int) else value
        for name, value in report.items()
        if value != 0
    }
    left, right = (max(map(len, column)) for column in (cells.keys(), cells.values()))
    return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in cells.items())


def _next_command(metadata: schema.Metadata) -> str:
    """Training on all that was prepared: every action type a label, on every surface."""
    command = "python -m pinjax.train --config=configs/pinnerformer.py"
    if metadata.leave_one_out:
        return f"{command}:ml1m --config.data.name={_OUT.value}"
    command += f" --config.data.name={_OUT.value} --config.data.surfaces="
    command += f" --config.data.positives='{', '.join(metadata.actions[1:])}'"
    if "items without content" not in metadata.report:
        command += " --config.data.content=False"
    return command


if __name__ == "__main__":
    app.run(main)
