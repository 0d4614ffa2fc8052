"""Preparing a log: time, CPU and memory, beside pandas and, if there is one, an older checkout.

    python -m benchmarks.prepare --rows=100000000 --users=1000000 --memory=3GiB
    python -m benchmarks.prepare --rows=5000000 --users=50000 --before=DIR

The log has text ids of users and of 200,000 items, times in ms, durations, actions and surfaces, in
one Parquet file. pandas reads it, numbers the ids, sorts by user and time and drops repeated rows;
it writes nothing. Each runs in a process of its own. Memory is the peak of its resident set.
"""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import duckdb
from absl import app, flags

_ROWS = flags.DEFINE_integer("rows", 5_000_000, "events")
_USERS = flags.DEFINE_integer("users", 50_000, "users")
_MEMORY = flags.DEFINE_string("memory", "3GiB", "as of pinjax.prepare")
_PANDAS = flags.DEFINE_bool("pandas", True, "whether pandas is measured, too")
_BEFORE = flags.DEFINE_string("before", None, "a checkout of pinjax from before DuckDB")

_MAP = """
from pinjax.data.sources import column_map

def get_config():
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="ms", duration="seconds")
    config.events.update(action="action", surface=("surface",))
    return config
"""
_WITH_PANDAS = """
import pandas
rows = pandas.read_parquet({log!r})
for name in ("user", "item", "action", "surface"):
    rows[name] = pandas.factorize(rows[name])[0]
rows = rows.sort_values(["user", "time"], kind="stable")
rows = rows.drop_duplicates(["user", "item", "time", "action"])
"""
_BEFORE_DUCKDB = """
import sys
sys.path.insert(0, {before!r})
from pinjax.data import column_map, prepared
config = column_map.default()
config.events.update(user="user", time="time", time_unit="ms", duration="seconds")
config.events.update(action="action", surface=("surface",))
prepared.prepare([{log!r}], None, {out!r}, config)
"""


def main(argv: list[str]) -> None:
    del argv
    size = _ROWS.value, _USERS.value
    with tempfile.TemporaryDirectory() as directory:
        log, out = f"{directory}/log.parquet", f"{directory}/out"
        # In a process of its own: children would have this one's memory as theirs.
        writer = multiprocessing.get_context("spawn").Process(target=_write, args=(log, *size))
        writer.start()
        writer.join()
        pathlib.Path(directory, "map.py").write_text(_MAP)
        command = [sys.executable, "-m", "pinjax.prepare", f"--config={directory}/map.py"]
        command += [f"--events={log}", f"--out={out}", f"--memory={_MEMORY.value}"]
        commands = {"pinjax.prepare": command}
        if _PANDAS.value:
            commands["pandas"] = [sys.executable, "-c", _WITH_PANDAS.format(log=log)]
        if _BEFORE.value:
            code = _BEFORE_DUCKDB.format(before=_BEFORE.value, log=log, out=f"{directory}/before")
            commands["before DuckDB"] = [sys.executable, "-c", code]
        base = None
        print(f"{_ROWS.value:,} events of {_USERS.value:,} users, {os.path.getsize(log):,} bytes")
        for name, command in commands.items():
            wall, cpu, memory = _measure(command)
            base = base or cpu
            print(
                f"{name:<15} {wall:7.1f} s  {cpu:7.1f} s of CPU  {_ROWS.value / cpu:11,.0f} rows a "
                f"second of it  {memory / 2**30:5.2f} GiB  {cpu / base:5.2f} times the CPU"
            )


def _write(path: str, rows: int, users: int) -> None:
    with duckdb.connect(config={"memory_limit": "4GB"}) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(
            f"COPY (SELECT 'u' || lpad(CAST(hash(i) % {users} AS VARCHAR), 8, '0') AS user, "
            "'i' || CAST(floor(pow(random(), 2) * 200000) AS BIGINT) AS item, "
            "1600000000000 + CAST(random() * 8640000000 AS BIGINT) AS time, "
            "CAST(random() * 30 AS FLOAT) AS seconds, "
            "['click', 'save', 'hide'][1 + CAST(random() * 3 AS INTEGER) % 3] AS action, "
            "['home', 'search'][1 + CAST(random() * 2 AS INTEGER) % 2] AS surface "
            f"FROM range({rows}) rows(i)) TO '{path}' (FORMAT parquet)"
        )


def _measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of CPU, and the most bytes that the process had at once."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[:3]} ended with {os.waitstatus_to_exitcode(status)}")
    wall = time.monotonic() - started
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    app.run(main)
