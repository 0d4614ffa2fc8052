"""Draws what runs reached, as one HTML page that needs no network.

    python -m pinjax.report --workdir=work/pinnerformer
    python -m pinjax.report --workdir=work/pinnerformer,work/pinnersage --out=both.html

It has the curves of training, every table of `evaluate` with its intervals, recall by history, by
popularity and age of items, and by staleness, how recommendations spread over the catalogue, the
calibration of logQ, a map of the items, and single users and items to browse. Of a large data set
it shows a sample, and says so. What a run lacks is left out, with the command that makes it.
"""

import datetime
from collections.abc import Sequence

from absl import flags

from pinjax import app, files
from pinjax.errors import InputError
from pinjax.reporting import build, page, runs

WORKDIR = flags.DEFINE_list(
    "workdir", None, "directories of runs, with commas between them", required=True
)
OUT = flags.DEFINE_string("out", "report.html", "file to write")
app.verify_flag()


def main(argv: Sequence[str]) -> int:
    del argv
    out = app.directory("--out", OUT.value)
    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"--out={OUT.value}: expected a file, in a directory that exists")
    directories = [app.local_directory("--workdir", name) for name in WORKDIR.value or [""]]
    if len(set(directories)) < len(directories):
        raise InputError(f"--workdir={','.join(WORKDIR.value)}: expected each directory once")
    found = runs.read(directories)
    content = build.content(found, app.verifies())
    now = datetime.datetime.now(datetime.UTC)
    content["made"] = f"Made by pinjax.report, {now:%Y-%m-%d %H:%M} UTC."
    made = page.render(content).encode()
    with files.replacing(out) as file:
        file.write(made)
    for run in found:
        for line in run.missing:
            print(f"{run.name} lacks {line}")
    print(f"{out}: {len(made) / 1e6:.1f} MB, of {', '.join(run.name for run in found)}")
    print("next  open it in any browser; it needs no other file and no network")
    return 0


if __name__ == "__main__":
    app.run(main)
