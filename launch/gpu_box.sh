#!/usr/bin/env bash
# One machine with GPUs that ssh reaches: HOST is what ssh calls it, its config has the rest.
#
#   launch/gpu_box.sh setup  HOST      # copies the last commit to ~/pinjax there, and installs
#   launch/gpu_box.sh run    HOST -- --config=configs/pinnerformer.py:paper --workdir=work/run
#   launch/gpu_box.sh logs   HOST      # as they grow; ends like the run
#   launch/gpu_box.sh status HOST
#   launch/gpu_box.sh stop   HOST      # its state is saved: the same `run` goes on
#
# --dry-run prints every ssh and scp command instead. A run needs no connection: `run` and `logs`
# follow it, and end with its code; whatever ends them, it goes on. Where it was stopped by someone
# else (75) it starts again by itself. HOST needs Linux, bash, Python and NVIDIA's driver.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

[ $# -ge 2 ] || fail "expected setup, run, logs, status or stop, and a host; see $0"
command=$1 host=$2 dry=''
shift 2
case $host in '' | -*) fail "expected a host, not '$host'" ;; esac
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --) shift; break ;;
    *) fail "$1 is no option; training arguments come after --" ;;
  esac
  shift
done

# Functions named there_... run on the host, in ~/pinjax; on_host sends them.

there_refuse() { echo "error: $*" >&2; exit 1; }

there_going() { ! flock -ns "$log.lock" true; }  # the lock is held as long as the run is kept going

there_last() { tail -c 20000 "$log" | tr '\r' '\n' | awk NF | tail -n "$1"; }

there_note() {  # there_note LINE: on a line of its own, whatever a progress bar has left
  [ -z "$(tail -c 1 "$log")" ] || echo >>"$log"
  echo "$*" >>"$log"
}

there_setup() {
  ! there_going || there_refuse "a run is going on $host: stop it first"
  tar --recursive-unlink -xzf ~/pinjax.tar.gz
  . launch/env.sh
  local jax
  jax=$(accelerator)
  [[ $jax == *cuda* ]] || there_refuse "nvidia-smi finds no GPU on $host"
  install requirements.txt
  # Again, since that does nothing where it was done before there was a driver.
  pip_install "$jax"
  .venv/bin/python -c 'import jax; print(jax.devices()); exit(jax.default_backend() != "gpu")' ||
    there_refuse "$jax sees no GPU on $host: is the driver (nvidia-smi) new enough for it?"
}

there_keep() {  # there_keep ARGUMENT ...: trains, again and again where it is stopped
  local code
  while true; do
    code=0
    # `stop` leaves its note before it reads the process id, so that no stop is missed.
    (
      echo "$BASHPID" >"$log.pid"
      [ ! -e "$log.stop" ] || exit 75
      exec launch/run.sh "$@"
    ) 9>&- || code=$?
    if [ "$code" -ne 75 ] || [ -e "$log.stop" ]; then break; fi  # the code is pinjax/app.py's
    there_note "stopped, its state saved: it goes on"
  done
  there_note "ended with $code"
}

there_start() {  # there_start ARGUMENT ...
  [ -e launch/run.sh ] || there_refuse "no pinjax on $host: set it up first"
  exec 9>"$log.lock"
  flock -w 1 9 || there_refuse "a run is going on $host already"
  rm -f "$log.stop" "$log.pid"
  touch "$log"
  there_note "started with $*"
  export log
  export -f there_keep there_note
  setsid bash -c 'there_keep "$@"' keep "$@" >>"$log" 2>&1 </dev/null &
}

there_follow() {
  [ -e "$log" ] || there_refuse "nothing ever ran on $host"
  local start code
  start=$(grep -an '^started with' "$log" | tail -n 1 | cut -d : -f 1)
  flock -s "$log.lock" true >/dev/null 2>&1 &  # ends with the run
  tail -s 0.2 --pid=$! -n "+$start" -f "$log"
  code=$(tail -n 1 "$log" | sed -n 's/^ended with //p')
  [ -n "$code" ] || there_refuse "the run on $host was cut off: start it again, and it goes on"
  [ "$code" -eq 0 ] || there_last 20 >&2
  exit "$code"
}

there_status() {
  if there_going; then
    echo running
    there_last 1
  elif [ -e "$log" ]; then
    tail -n 1 "$log" | grep -a '^ended with' || echo "cut off: start it again, and it goes on"
  else
    echo never ran
  fi
}

there_stop() {
  there_going || there_refuse "no run is going on $host"
  touch "$log.stop"
  kill "$(cat "$log.pid")" 2>/dev/null || true  # it may have ended by now
  flock -s "$log.lock" true
  tail -n 1 "$log"
}

on_host() {  # on_host FUNCTION ARGUMENT ...
  local script quote="'\\''"
  script="mkdir -p ~/pinjax; cd ~/pinjax; mkdir -p work/logs; log=work/logs/gpu_box.log
$(printf 'host=%q' "$host")
$(declare -f there_refuse there_going there_last there_note there_keep "$1")
$(printf '%q ' "$@")"
  # In single quotes, since the login shell there may be sh, which does not know what %q writes.
  call ssh -n "$host" "bash -euo pipefail -c '${script//\'/$quote}'"
}

setup() {
  local code
  code=$(mktemp -d)
  trap "rm -r '$code'" EXIT
  git archive --format=tar.gz --output="$code/pinjax.tar.gz" HEAD
  call scp -q "$code/pinjax.tar.gz" "$host:"
  on_host there_setup
}

case $command in
  setup) setup ;;
  run)
    on_host there_start "$@"
    on_host there_follow
    ;;
  logs) on_host there_follow ;;
  status) on_host there_status ;;
  stop) on_host there_stop ;;
  *) fail "$command is none of setup, run, logs, status, stop" ;;
esac
