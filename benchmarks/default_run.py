"""A run, from command to table: wall time, peak memory, and the table.

    python -m benchmarks.default_run                                     # three minutes
    python -m benchmarks.default_run --config=configs/itemsage.py
    python -m benchmarks.default_run --config=configs/pinnerformer.py:hour

Everything is made anew, the data set too, except the installation.
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

_CONFIG = flags.DEFINE_string("config", "configs/pinnerformer.py", "config of the run")


def main(_):
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *(sys.executable, "-m", "pinjax.train", f"--config={_CONFIG.value}"),
            *(f"--workdir={directory}/run", f"--config.data.dir={directory}/data"),
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        results = pathlib.Path(directory, "run", "results_test.json")
        rows = json.loads(results.read_text())["rows"]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    recall = {method: metrics["R@10"][0] for method, metrics in rows.items()}
    method = next(iter(recall))
    over_all = [name for name, cells in rows.items() if "P90 cov@10" in cells]
    popular = [name for name in over_all if name.startswith("popularity")]
    popularity = max(recall[name] for name in popular)
    print(f"\n{os.cpu_count()} cores: {seconds / 60:.1f} minutes, at most {peak:.1f} GiB")
    print(f"{method}: Recall@10 {recall[method]:.4f}")
    above, low, high = rows[method]["over baseline"]
    print(f"  over the best baseline {above:.4f} [{low:.4f}, {high:.4f}]")
    print(f"  over popularity   {recall[method] / popularity:5.1f}")
    print(f"  over the oracle   {recall[method] / recall['oracle']:5.2f}")


if __name__ == "__main__":
    app.run(main)
