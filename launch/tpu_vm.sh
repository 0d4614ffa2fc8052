#!/usr/bin/env bash
# A slice of TPUs on Google Cloud, of one host or many, through the gcloud CLI.
#
#   launch/tpu_vm.sh check  NAME --type=v6e-16 --zone=ZONE [-- --config=... --workdir=gs://...]
#   launch/tpu_vm.sh create NAME --type=v6e-16 --zone=ZONE [--spot] [--version=...]
#   launch/tpu_vm.sh setup  NAME --type=... --zone=... [-- --workdir=gs://BUCKET/smoke]
#   launch/tpu_vm.sh run    NAME --type=... --zone=... [--spot] [--delete] -- \
#       --config=configs/pinnerformer.py:paper --workdir=gs://BUCKET/run
#   launch/tpu_vm.sh logs   NAME                       # one a worker, as they grow
#   launch/tpu_vm.sh status NAME --type=... --zone=...
#   launch/tpu_vm.sh delete NAME --type=... --zone=...
#
# Types are v4-8, v5litepod-16, v5p-32, v6e-16, tpu7x-2x2x2 and the like. v5p, v6e and tpu7x are made
# by Compute Engine, the others by the Cloud TPU API, which is also what verbs without --type talk to;
# --api=tpu and --api=compute choose where both are possible. --version is the runtime version of the
# one, the image family of the other; the type knows it. The project is gcloud's own.
#
# `check` makes nothing: it tells what would be made, and what is wrong with it. A `create` that fails
# or is interrupted deletes what it made. `setup` copies the last commit to all workers and installs
# it; it ends with the devices of each worker and with a run of the :test config, which on several
# hosts needs --workdir on gs://. `run` ends with the first worker that fails, and then stops the
# others. With --spot a slice that was taken away is asked for again, set up, and the run goes on from
# its newest checkpoint: keep --workdir on gs://. --delete gives the slice back when all is done.
# --dry-run prints every gcloud command instead.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 2; }

[ $# -ge 2 ] || fail "expected check, create, setup, run, logs, status or delete, and a name; see $0"
command=$1 name=$2
shift 2
zone='' type='' version='' api='' spot='' delete='' dry='' poll=${POLL_SECONDS:-10}
disk=100  # GB of the boot disk; that of the Cloud TPU API is as large
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --api=*) api=${1#*=} ;;
    --spot) spot=yes ;;
    --delete) delete=yes ;;
    --dry-run) dry=yes ;;
    --) shift; break ;;
    *) fail "$1 is no option; training arguments come after --" ;;
  esac
  shift
done
logs=work/logs/$name

show() {  # show WORD ...: a command that could be pasted
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9./:=,@%+_-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

call() { if [ -n "$dry" ]; then show "$@"; else "$@"; fi; }

cloud() { call gcloud "$@"; }

source launch/tpu_types.sh
source launch/tpu_failures.sh
source launch/tpu_check.sh
case $command in
  logs) ;;
  check | create | setup | run | status | delete)
    [ -n "$zone" ] || fail "$command needs --zone"
    if [ -n "$type" ]; then
      know_type
    elif [ "$command" = check ] || [ "$command" = create ] || [ -n "$spot" ]; then
      fail "$command needs --type, such as v5litepod-16"
    else
      apis=tpu
    fi
    api=${api:-${apis%% *}}
    case " $apis " in
      *" $api "*) ;;
      *) fail "--api=$api: $type is had by --api=${apis/ / or --api=}" ;;
    esac
    source "launch/tpu_by_$api.sh"
    ;;
  *) fail "$command is none of check, create, setup, run, logs, status, delete" ;;
esac

asked=()  # kinds of what was asked for, the newest first, until the slice is there to stay
workers=()

ask() {  # ask KIND WORD ...: has the cloud make one thing
  if [ -n "$dry" ]; then cloud "${@:2}"; return; fi
  local said
  asked=("$1" "${asked[@]}")
  said=$(gcloud "${@:2}" 2>&1) && return
  [ "$(reason "$said")" != exists ] || asked=("${asked[@]:1}")  # it is somebody else's
  refuse "$said"
}

refuse() {  # refuse WORDS: says what the cloud's mean, and takes back what was asked for
  drop "${asked[@]}" || echo "error: $name may cost money: delete it" >&2
  asked=() refused=$(reason "$1")
  echo "error: $name: $(meaning "$1")" >&2
  return 1
}

drop() {  # drop KIND ...: deletes these; it is no failure that one is gone already
  local kind said words code=0
  for kind in "$@"; do
    deletion "$kind"
    if [ -n "$dry" ]; then
      cloud "${words[@]}"
    elif ! said=$(gcloud "${words[@]}" 2>&1) && [ "$(reason "$said")" != missing ]; then
      echo "error: $kind $name: $(meaning "$said")" >&2
      code=1
    fi
  done
  return "$code"
}

create() {
  trap 'trap "" INT TERM HUP; refuse interrupted || exit 130' INT TERM HUP
  request || return
  [ -z "$dry" ] || return 0
  local state told='' silent=0 words
  words=$(mktemp)
  while true; do
    if state=$(progress 2>"$words"); then
      silent=0
    else
      state="LOST $(<"$words")"
      if [ "$(reason "$(<"$words")")" != missing ]; then
        [ $((++silent)) -lt 5 ] || { refuse "$(<"$words")"; return; }
        state="not known: $(<"$words")"
      fi
    fi
    case $state in
      READY) break ;;
      FAILED* | LOST*) refuse "$state"; return ;;
    esac
    [ "$state" = "$told" ] || echo "$name is $state ..." >&2
    told=$state
    sleep "$poll"
  done
  rm "$words"
  asked=()
  trap - INT TERM HUP
}

install_code() {
  local archive=$logs/pinjax.tar.gz tries=0
  find_workers || return
  [ -n "$dry" ] || mkdir -p "$logs"
  call git archive --format=tar.gz "--output=$archive" HEAD || return
  until copy "$archive"; do  # a host answers a while after it is there
    [ $((++tries)) -lt 12 ] || return 1
    echo "$name does not answer yet ..." >&2
    sleep "$poll"
  done
  on_all 'mkdir -p pinjax && tar -xzf pinjax.tar.gz -C pinjax && cd pinjax &&
    . launch/env.sh && install requirements.txt && install requirements-gcp.txt'
}

smoke() {  # smoke [--workdir=...]: what each worker has, and a run of all of them together
  local size=32 wrong='jax.default_backend() != "tpu"'
  [ -z "${devices:-}" ] || wrong+=" or jax.device_count() != $devices"
  on_all "cd pinjax && .venv/bin/python -c 'import jax, socket; here = jax.local_devices();\
 print(f\"{socket.gethostname()}: {len(here)} of {jax.device_count()} x {here[0].device_kind}\");\
 exit($wrong)'" ||
    { echo "error: $name is no slice of ${devices:+$devices }TPU devices; create another" >&2; return 1; }
  if [ $# -eq 0 ] && [ ${#workers[@]} -gt 1 ]; then
    echo "no run of :test, which on several hosts needs -- --workdir=gs://BUCKET/smoke" >&2
    return
  fi
  [ "${devices:-1}" -le "$size" ] || size=$devices  # a batch is divided over all
  run_once --config=configs/pinnerformer.py:test "--config.data.users=$size" \
    "--config.evaluate.batch=$size" "${@:---workdir=/tmp/pinjax-smoke}" || complain $?
}

setup() { install_code && smoke "$@"; }

last_lines() {  # last_lines N: of the log of each worker
  local i
  for i in "${!workers[@]}"; do
    tail -n "$1" "$logs/worker-$i.log"
  done
}

complain() {  # complain CODE: of a worker
  last_lines 20 >&2
  echo "error: a worker ended with $1; all of it is in $logs" >&2
  return "$1"
}

run_once() {  # run_once ARGUMENT ...: fails with the first worker that does
  local i remote code=0 pids=()
  for i in "${!workers[@]}"; do
    remote=$(printf ' %q' launch/run.sh "$@" $(wiring "$i"))
    # The log's last line tells the exit code, which ssh may not.
    remote="cd pinjax && {$remote; code=\$?; echo ended with \$code; exit \$code; }"
    if [ -n "$dry" ]; then
      on_worker "${workers[i]}" "$remote"
      [ "${hosts:-2}" -eq 1 ] || echo "# and so on each other worker"
    else
      mkdir -p "$logs"
      echo "started with $*" >>"$logs/worker-$i.log"  # an older last line is none of this run
      on_worker "${workers[i]}" "$remote" >>"$logs/worker-$i.log" 2>&1 &
      pids+=($!)
    fi
  done
  for _ in "${pids[@]}"; do
    wait -n || { code=$?; break; }
  done
  if [ "$code" -ne 0 ]; then
    kill "${pids[@]}" 2>/dev/null || true
    on_all 'pkill -f "[p]injax.train" || true' >/dev/null 2>&1 || true
    wait
  fi
  return "$code"
}

run() {
  local code state
  while true; do
    code=0
    if find_workers; then run_once "$@" || code=$?; else workers=() code=1; fi
    [ "$code" -ne 0 ] || break
    state=$(health 2>/dev/null) || state=GONE
    if [ "$state" != READY ] && [ -n "$spot" ]; then
      echo "$name is $state: asking for another, the run goes on there" >&2
      drop "${kinds[@]}" || true
      until create; do
        [ "$refused" = capacity ] || return 1
        sleep $((6 * poll))
      done
      install_code || return
    elif [ ${#workers[@]} -eq 0 ]; then
      echo "error: $name is $state" >&2
      return "$code"
    elif last_lines 1 | grep -Eq '^ended with (75|76|134)$'; then
      echo "a worker was stopped or lost: the run goes on" >&2  # the codes are pinjax/app.py's
    else
      complain "$code" || return
    fi
  done
  [ -z "$delete" ] || drop "${kinds[@]}"
}

case $command in
  logs) exec tail -n +1 -F "$logs"/worker-*.log ;;
  create | status) "$command" ;;
  delete) drop "${kinds[@]}" ;;
  check | setup | run) "$command" "$@" ;;
esac
