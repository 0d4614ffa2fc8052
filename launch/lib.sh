# Sourced by tpu_vm.sh, gke.sh, gpu_box.sh and slurm.sbatch, where they are started: what they share.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

need_bash_4_4() {  # before anything that an older one cannot parse
  [ "${BASH_VERSINFO[0]}${BASH_VERSINFO[1]}" -ge 44 ] ||
    fail "this is bash $BASH_VERSION; expected 4.4 or later, which macOS has from Homebrew"
}

show() { printf '%q' "$1"; printf ' %q' "${@:2}"; echo; }  # show WORD ...: to be pasted

call() { if [ -n "$dry" ]; then show "$@"; else "$@"; fi; }  # call COMMAND ARGUMENT ...

# Of the exit codes in the last lines of logs, "ended with CODE": preferably one that no restart
# mends, otherwise one that a restart does, and nothing if none tells a code above 0.
decisive_code() {  # decisive_code LOG ...
  local log line code=''
  for log; do
    line=$(tail -n 1 "$log" 2>/dev/null) || continue
    [[ $line == 'ended with '[!0]* ]] || continue
    code=${line##* }
    restarts "$code" || break
  done
  echo "$code"
}

restarts() { [[ $1 =~ ^(75|76|134)$ ]]; }  # restarts CODE: whether to start again, see pinjax/app.py
