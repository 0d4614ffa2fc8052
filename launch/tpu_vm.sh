#!/usr/bin/env bash
# A Cloud TPU slice, of one host or many, through the gcloud CLI.
#
#   launch/tpu_vm.sh create NAME --type=v5litepod-16 --zone=us-west4-a [--version=...] [--spot]
#   launch/tpu_vm.sh setup  NAME --zone=...            # copies the last commit to all workers
#   launch/tpu_vm.sh run    NAME --zone=... [--spot --type=...] [--delete] -- \
#       --config=configs/pinnerformer.py:paper --workdir=gs://BUCKET/run
#   launch/tpu_vm.sh logs   NAME                       # one a worker, as they grow
#   launch/tpu_vm.sh status NAME --zone=...
#   launch/tpu_vm.sh delete NAME --zone=...
#
# --dry-run prints every gcloud command instead. `run` ends with the first worker that fails, and
# then stops the others. With --spot a slice that was taken away is asked for again, set up, and the
# run goes on from its newest checkpoint: keep --workdir on gs://. --delete gives the slice back
# when all is done. The project is gcloud's own.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }

[ $# -ge 2 ] || fail "expected create, setup, run, logs, status or delete, and a name; see $0"
command=$1 name=$2
shift 2
zone='' type='' version=v2-alpha-tpuv5-lite spot='' delete='' dry='' poll=${POLL_SECONDS:-10}
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=--spot ;;
    --delete) delete=yes ;;
    --dry-run) dry=yes ;;
    --) shift; break ;;
    *) fail "$1 is no option; training arguments come after --" ;;
  esac
  shift
done
logs=work/logs/$name

tpus() {  # tpus GROUP VERB ...: one gcloud command on the slice's zone
  if [ -n "$dry" ]; then
    printf 'gcloud compute tpus'; printf ' %q' "$@" "--zone=$zone"; echo
  else
    gcloud compute tpus "$@" "--zone=$zone"
  fi
}

on_workers() {  # on_workers WORKERS COMMAND
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  [ -n "$type" ] || fail "create needs --type, such as v5litepod-16"
  tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
    "--runtime-version=$version" ${spot:+"$spot"}
  local state
  while state=$(tpus queued-resources describe "$name" '--format=value(state.state)'); do
    [ -z "$dry" ] || { echo "$state"; return; }
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) echo "error: $name is $state" >&2; return 1 ;;
    esac
    echo "$name is $state ..." >&2
    sleep "$poll"
  done
  return 1
}

setup() {
  local code
  code=$(mktemp -d)
  git archive --format=tar.gz --output="$code/pinjax.tar.gz" HEAD
  tpus tpu-vm scp "$code/pinjax.tar.gz" "$name:" --worker=all
  rm -r "$code"
  on_workers all 'mkdir -p pinjax && tar -xzf pinjax.tar.gz -C pinjax && cd pinjax &&
    . launch/env.sh && install requirements.txt && install requirements-gcp.txt'
}

run_once() {  # run_once ARGUMENT ...: fails with the first worker that does
  local workers remote code=0 pids=()
  if [ -n "$dry" ]; then
    tpus tpu-vm describe "$name" '--format=value(networkEndpoints.len())'
    workers=1
  else
    workers=$(tpus tpu-vm describe "$name" '--format=value(networkEndpoints.len())') || return
    mkdir -p "$logs"
  fi
  # The log's last line tells the exit code, which ssh may not.
  remote="cd pinjax && { launch/run.sh$([ $# -eq 0 ] || printf ' %q' "$@"); code=\$?; echo ended with \$code; exit \$code; }"
  for ((worker = 0; worker < workers; worker++)); do
    if [ -n "$dry" ]; then
      on_workers "$worker" "$remote"
    else
      on_workers "$worker" "$remote" >>"$logs/worker-$worker.log" 2>&1 &
      pids+=($!)
    fi
  done
  for _ in "${pids[@]}"; do
    wait -n || { code=$?; break; }
  done
  if [ "$code" -ne 0 ]; then
    kill "${pids[@]}" 2>/dev/null || true
    on_workers all 'pkill -f pinjax.train || true' >/dev/null 2>&1 || true
    wait
  fi
  return "$code"
}

run() {
  local code state
  while true; do
    code=0
    run_once "$@" || code=$?
    [ "$code" -ne 0 ] || break
    state=$(tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null) || state=GONE
    if [ "$state" != READY ] && [ -n "$spot" ]; then
      echo "$name is $state: asking for another, the run goes on there" >&2
      delete || true
      create
      setup
    elif tail -qn 1 "$logs"/worker-*.log | grep -Eq '^ended with (75|76|134)$'; then
      echo "a worker was stopped or lost: the run goes on" >&2  # the codes are pinjax/app.py's
    else
      tail -n 20 "$logs"/worker-*.log >&2
      echo "error: a worker ended with $code; all of it is in $logs" >&2
      return "$code"
    fi
  done
  [ -z "$delete" ] || delete
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

[ "$command" = logs ] || [ -n "$zone" ] || fail "$command needs --zone"
case $command in
  create | setup | delete) "$command" ;;
  run) run "$@" ;;
  logs) exec tail -n +1 -F "$logs"/worker-*.log ;;
  status)
    tpus queued-resources describe "$name" '--format=value(state.state)'
    tpus tpu-vm describe "$name" '--format=value(state,health)'
    ;;
  *) fail "$command is none of create, setup, run, logs, status, delete" ;;
esac
