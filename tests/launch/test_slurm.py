"""launch/slurm.sbatch with an srun and a scontrol that record their calls."""

import os
import pathlib
import shutil
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Runs two tasks, of which a killed one tells nothing, and ends with 137 where one was killed.
SRUN = """#!/bin/bash
echo srun "$@" >>calls
code=0
while [[ $1 == --* ]]; do
  [[ $1 != --output=* ]] || log=${1#--output=}
  shift
done
for task in 0 1; do
  export TASK=$task
  "$@" >>"${log/'%t'/$task}" || code=$?
done
if grep -q 137 code-?; then
  sed -i '$d' "${log/'%t'/1}"
  code=137
fi
exit "$code"
"""
TRAIN = """#!/bin/sh
echo "$@"
exit $(cat code-$TASK)
"""


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((0, 0), 0),
        ((2, 0), 2),
        ((75, 0), 75),
        ((0, 76), 76),
        ((134, 0), 134),
        ((76, 137), 76),  # it waited for the other when it was killed
        ((0, 137), 137),  # say, without memory
        ((76, 2), 2),
    ],
)
def test_a_job_that_is_to_go_on_is_queued_again(tmp_path, codes, code):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch/env.sh").write_text("install() { echo install $1 >>calls; }\n")
    fake, python = tmp_path / "bin", tmp_path / ".venv/bin/python"
    for path, text in (
        (fake / "srun", SRUN),
        (fake / "scontrol", '#!/bin/sh\necho scontrol "$@" >>calls\n'),
        (python, TRAIN),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    for task, of_task in enumerate(codes):
        (tmp_path / f"code-{task}").write_text(str(of_task))
    env = {"PATH": f"{fake}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", "--config=a.py", "--workdir=run"],
        cwd=tmp_path,
        env=env | {"SLURM_JOB_ID": "7"},
    )
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "install requirements.txt"
    assert calls[1].startswith("srun --kill-on-bad-exit=1 --output=pinjax-7-%t.log ")
    again = code in (75, 76, 134)
    assert [call for call in calls if call.startswith("scontrol")] == ["scontrol requeue 7"] * again
    lines = (tmp_path / "pinjax-7-0.log").read_text().splitlines()
    assert lines[:2] == ["started", "-m pinjax.train --config=a.py --workdir=run"]


def test_a_task_that_is_told_to_stop_tells_its_code(tmp_path):
    """Its shell would otherwise end before it does."""
    text = (ROOT / "launch/slurm.sbatch").read_text()
    task = text.partition("task='")[2].partition("'\n")[0]
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\ntrap 'exit 75' TERM\ntouch begun\nwhile :; do sleep 0.01; done\n"
    )
    python.chmod(0o755)
    process = subprocess.Popen(
        ["bash", "-c", task, "train"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM does, all that runs
    out, _ = process.communicate()
    assert (process.returncode, out.splitlines()[-1]) == (75, "ended with 75")
