"""Whether two commits train the same parameters, bit for bit: for changes that only move code.

    python -m benchmarks.compare_commits BEFORE AFTER [--system=pinnerformer ...] [--devices=8 ...]

Checks each commit out into a git worktree of its own, trains the `:test` variant of each system
there on 1 and on 8 CPU devices, and compares the last checkpoint's parameters, the losses of all
steps, and the results table. Parameters are compared as the sorted hashes of their arrays, so a
parameter may have another name. Prints a line for each run; the exit code is 1 if any differs.

Both commits run with this Python, so with the same versions of JAX and XLA: other versions, or
another kind of CPU, may round differently.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

from benchmarks import runs

SYSTEMS = flags.DEFINE_multi_string(
    "system", ["pinnerformer", "itemsage", "searchsage"], "configs to train"
)
DEVICES = flags.DEFINE_multi_integer("devices", [1, 8], "CPU devices to train on")

_ROOT = pathlib.Path(__file__).parents[1]
_TIMINGS = ("queries/s", "time")  # how names of numbers end that differ between any two runs


def main(argv):
    if len(argv) != 3:
        raise app.UsageError("expected two commits")
    logging.set_verbosity(logging.ERROR)
    differ = False
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        trees = [stack.enter_context(_worktree(commit, scratch)) for commit in argv[1:]]
        print(f"{'':14}{'devices':>8}  {'parameters':<12}{'losses':<12}{'table':<12}")
        for system in SYSTEMS.value:
            for devices in DEVICES.value:
                before, after = (_train(tree, system, devices) for tree in trees)
                same = {name: before[name] == after[name] for name in before}
                differ |= not all(same.values())
                cells = [f"{'same' if x else 'DIFFER':<12}" for x in same.values()]
                print(f"{system:<14}{devices:>8}  {''.join(cells)}", flush=True)
                for name in (name for name in same if not same[name]):
                    print(f"  {name}: {before[name]}\n  {'':{len(name)}}  {after[name]}")
    sys.exit(int(differ))


@contextlib.contextmanager
def _worktree(commit: str, scratch: str):
    """A checkout of the commit in a directory of its own."""
    tree = pathlib.Path(tempfile.mkdtemp(dir=scratch)) / "tree"
    git = ["git", "-C", str(_ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
    try:
        yield tree
    finally:
        subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _train(tree: pathlib.Path, system: str, devices: int) -> dict[str, str]:
    """Hashes of a run's final parameters, its losses and its table."""
    workdir = tree.parent / f"{system}-{devices}"
    command = [sys.executable, "-m", "pinjax.train", f"--config=configs/{system}.py:test"]
    command += [f"--config.data.dir={tree.parent / 'data'}", f"--workdir={workdir}"]
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(tree)}
    env = {**os.environ, **env}
    done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {tree}:\n{done.stderr}")
    checkpoints = workdir / "checkpoints"
    last = max(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    rows = json.loads((workdir / "results_test.json").read_text())["rows"]
    return {
        "parameters": _hash_of_arrays(checkpoints / str(last) / "state"),
        "losses": _hash([_without_timings(line) for line in runs.metrics(workdir)]),
        "table": _hash({method: _without_timings(cells) for method, cells in rows.items()}),
    }


def _hash_of_arrays(directory: pathlib.Path) -> str:
    """The hash of a checkpoint's parameters, whatever their names and however sharded."""
    checkpointer = ocp.PyTreeCheckpointer()
    saved = checkpointer.metadata(directory).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
    state = checkpointer.restore(directory, restore_args=as_numpy)
    hashes = [
        hashlib.sha256(f"{x.dtype} {x.shape}".encode() + x.tobytes()).hexdigest()
        for x in jax.tree.leaves(state["params"])
    ]
    return _hash(sorted(hashes))


def _without_timings(numbers: dict) -> dict:
    return {name: x for name, x in numbers.items() if not name.endswith(_TIMINGS)}


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    app.run(main)
