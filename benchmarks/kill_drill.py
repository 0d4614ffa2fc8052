"""Kills runs at random times, and compares their results with the same runs without kills.

    python -m benchmarks.kill_drill                        # 20 kills a system, half an hour
    python -m benchmarks.kill_drill --rounds=1 --system=itemsage

A round kills one run five times, by SIGKILL: while its data set is made, between two steps, while a
checkpoint is written, while users are evaluated, and while embeddings are written. After each kill
the same command resumes it. At the end parameters, metrics, tables and embeddings are compared.
"""

import collections
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import pyarrow.parquet as pq
import tqdm
from absl import app, flags

_ROUNDS = flags.DEFINE_integer("rounds", 4, "rounds of five kills, for each system", lower_bound=1)
_KNOWN = ("pinnerformer", "itemsage", "searchsage")
_SYSTEMS = flags.DEFINE_multi_enum("system", _KNOWN, _KNOWN, "systems to kill")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the random times")


class Run:
    """A run's files, and the commands that make them."""

    def __init__(self, system: str, directory: pathlib.Path):
        self.data, self.workdir, self.out = (directory / x for x in ("data", "run", "embeddings"))
        self._flags = [
            *(f"--config=configs/{system}.py:test", f"--workdir={self.workdir}"),
            *(f"--config.data.dir={self.data}", "--config.train.log_every=1"),
        ]

    def start(self, command: str) -> subprocess.Popen:
        more = [f"--out={self.out}"] if command == "embed" else []
        return subprocess.Popen(
            [sys.executable, "-m", f"pinjax.{command}", *self._flags, *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def finish(self, command: str) -> None:
        if code := self.start(command).wait():
            raise SystemExit(f"{command} of {self.workdir} ended with {code}")

    def lines(self) -> list[dict]:
        path = self.workdir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def makes_data(self) -> bool:
        return any(self.data.rglob(".*.unfinished"))

    def reached(self, step: int) -> bool:
        return any(line["step"] >= step for line in self.lines())

    def writes_checkpoint(self) -> bool:
        return any(self.workdir.glob("checkpoints/*tmp*"))

    def writes_embeddings(self) -> bool:
        return self.out.exists()

    def content(self) -> dict[str, str]:
        """Hashes of a run's results, without times and speeds."""
        results = json.loads((self.workdir / "results_test.json").read_text())
        for metrics in results["rows"].values():
            for name in [name for name in metrics if "queries/s" in name]:
                del metrics[name]
        manifest = json.loads((self.out / "manifest.json").read_text())
        found = {
            "parameters": manifest["checkpoint"],
            "metrics": [{**line, "time": 0} for line in self.lines()],
            "table": results,
        }
        for path in sorted(self.out.glob("*.parquet")):
            found[path.name] = pq.read_table(path).to_pylist()
        return {name: _hash(value) for name, value in found.items()}


def main(_):
    draw = random.Random(_SEED.value)
    kills, differences = collections.Counter(), 0
    for system in _SYSTEMS.value:
        with tempfile.TemporaryDirectory() as directory:
            unbroken = Run(system, pathlib.Path(directory, "unbroken"))
            unbroken.finish("train")
            unbroken.finish("embed")
            expected = unbroken.content()
            for number in tqdm.trange(_ROUNDS.value, desc=system):
                drilled = Run(system, pathlib.Path(directory, f"drilled-{number}"))
                kills += _drill(drilled, draw)
                found = drilled.content()
                different = [name for name in expected if found.get(name) != expected[name]]
                if different:
                    print(f"{system}, round {number}: {', '.join(different)} differ")
                differences += len(different) + len(found.keys() - expected.keys())
    for point, number in kills.items():
        print(f"{number:4} kills: {point}")
    print(f"{sum(kills.values()):4} kills and {differences} differences in {', '.join(expected)}")
    return 1 if differences else 0


def _drill(run: Run, draw: random.Random) -> collections.Counter:
    """Kills a run at each point in turn, then lets it end; returns how often it was alive."""
    step, evaluation = draw.randrange(1, 10), draw.choice([19, 30])
    points = [  # what is killed, in which command, what it begins with, and its seconds at most
        ("while data are made", "train", run.makes_data, 1.0),
        ("between two steps", "train", lambda: run.reached(step), 0.02),
        ("while a checkpoint is written", "train", run.writes_checkpoint, 0.1),
        ("while users are evaluated", "train", lambda: run.reached(evaluation), 3.0),
        ("while embeddings are written", "embed", run.writes_embeddings, 1.0),
    ]
    kills = collections.Counter()
    for what, command, begins, seconds in points:
        if command == "embed":
            run.finish("train")
        process = run.start(command)
        while process.poll() is None and not begins():
            time.sleep(0.002)
        time.sleep(draw.uniform(0, seconds))
        kills[what] += process.poll() is None
        process.kill()
        process.wait()
    run.finish("embed")
    return kills


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


if __name__ == "__main__":
    app.run(main)
