"""The default run, from command to table: wall time, peak memory, and what it reaches.

    python benchmarks/default_run.py            # the six minutes of the README
    python benchmarks/default_run.py --hour     # ten times the steps

Everything is made anew, the data set too; only the installation is there.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from absl import app, flags

_HOUR = flags.DEFINE_boolean("hour", False, "train for about an hour")
_HOUR_FLAGS = ("--config.train.steps=12000",)


def main(_):
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(sys.executable, "-m", "pinjax.train", "--config=configs/pinnerformer.py"),
            *(f"--workdir={directory}/run", f"--config.data.dir={directory}/data"),
            *(_HOUR_FLAGS if _HOUR.value else ()),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        results = pathlib.Path(directory, "run", "results_test.json")
        rows = json.loads(results.read_text())["rows"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    recall = {method: metrics["R@10"][0] for method, metrics in rows.items()}
    popularity = max(value for name, value in recall.items() if name.startswith("popularity"))
    print(f"\n{os.cpu_count()} cores: {seconds / 60:.1f} minutes, at most {peak:.1f} GiB")
    print(f"Recall@10 {recall['PinnerFormer']:.4f}")
    print(f"  over popularity   {recall['PinnerFormer'] / popularity:5.1f}")
    print(f"  over the oracle   {recall['PinnerFormer'] / recall['oracle']:5.2f}")


if __name__ == "__main__":
    app.run(main)
