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
# A type is, for instance, v4-8, v5litepod-16, v5p-32, v6e-16 or tpu7x-2x2x2. Compute Engine creates
# v5p, v6e and tpu7x, the Cloud TPU API the others; --api=compute and --api=tpu choose for v5p and
# v6e. Without --type, setup, run, status and delete use the Cloud TPU API. --version replaces the
# type's runtime version, or its image family with Compute Engine. The project is gcloud's own.
#
# `check` creates nothing: it reports what `create` would, and finds what is wrong. A `create` that
# fails or is interrupted deletes what it created. `setup` copies the last commit to all workers
# and installs it; then it prints the devices of each worker, and trains a :test config on all of
# them, which on several hosts needs --workdir on gs://. `run` first stops what an earlier one left
# on the workers. It ends with the first worker that fails, and then stops the others; where a worker
# was stopped or lost, it starts all of them again. With --spot it creates a preempted slice again,
# sets it up, and resumes from the last checkpoint: keep --workdir on gs://. --delete deletes the
# slice after a run that did not fail. --dry-run prints every command instead.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

need_bash_4_4
[ $# -ge 2 ] ||
  fail "expected check, create, setup, run, logs, status or delete, and a name; see $0"
command=$1 name=$2
shift 2
zone='' type='' version='' api='' spot='' delete='' dry='' poll=${POLL_SECONDS:-10}
disk=100  # GB of the boot disk; the Cloud TPU API has no other size
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
logs=work/logs/$name workers=()

show() {  # show WORD ...: as in lib.sh, but with quotes, which are easier to read
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[a-zA-Z0-9./:=,@%+_-]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

cloud() { call gcloud "$@"; }

source launch/tpu_types.sh
source launch/tpu_failures.sh
source launch/tpu_check.sh
case $command in
  logs) ;;
  check | create | setup | run | status | delete)
    [ -n "$zone" ] || fail "$command needs --zone"
    if [ -n "$type" ]; then
      resolve_type
    elif [ "$command" = check ] || [ "$command" = create ] || [ -n "$spot" ]; then
      fail "$command needs --type, such as v5litepod-16"
    else
      apis=tpu
    fi
    api=${api:-${apis%% *}}
    case " $apis " in
      *" $api "*) source "launch/tpu_by_$api.sh" ;;
      *) fail "--api=$api: ${type:-a slice without --type} needs --api=${apis/ / or --api=}" ;;
    esac
    ;;
  *) fail "$command is none of check, create, setup, run, logs, status, delete" ;;
esac

created=()  # the kinds of resources to delete if the creation fails, the newest first

there() {  # there KIND: whether one of this name exists
  local word words described=()
  deletion "$1"
  for word in "${words[@]}"; do
    case $word in
      delete) described+=(describe) ;;
      --force) ;;
      *) described+=("$word") ;;
    esac
  done
  gcloud "${described[@]}" --format=none >/dev/null 2>&1
}

create_resource() {  # create_resource KIND WORD ...: by this gcloud command
  local said
  if [ -n "$dry" ]; then cloud "${@:2}"; return; fi
  # Whatever fails or interrupts the creation, what was there before must not be deleted.
  if there "$1"; then give_up "the $1 already exists"; return; fi
  created=("$1" "${created[@]}")
  said=$(gcloud "${@:2}" 2>&1) && return
  [ "$(reason "$said")" != exists ] || created=("${created[@]:1}")  # it was there before
  give_up "$said"
}

delete_resources() {  # delete_resources KIND ...: all that are there
  local kind said words code=0
  for kind in "$@"; do
    deletion "$kind"
    if [ -n "$dry" ]; then
      cloud "${words[@]}"
    elif ! said=$(gcloud "${words[@]}" 2>&1) && [ "$(reason "$said")" != missing ]; then
      echo "error: $kind $name may cost money: $(meaning "$said")" >&2
      code=1
    fi
  done
  return "$code"
}

give_up() {  # give_up MESSAGE: deletes what was created; fails
  delete_resources "${created[@]}" || true
  created=() gave_up=$(reason "$1")
  echo "error: $name: $(meaning "$1")" >&2
  return 1
}

create() {
  local state told='' failures=0 errors
  trap 'trap "" INT TERM HUP; echo "deleting $name ..." >&2; give_up interrupted || exit 130' \
    INT TERM HUP
  request_slice || return
  [ -z "$dry" ] || return 0
  errors=$(mktemp)
  while true; do
    if state=$(progress 2>"$errors"); then
      failures=0
    elif [ "$(reason "$(<"$errors")")" = missing ]; then
      state="LOST $(<"$errors")"
    elif [ $((++failures)) -lt 5 ]; then
      state="out of sight: $(<"$errors")"
    else
      state="FAILED $(<"$errors")"
    fi
    case $state in
      READY) break ;;
      FAILED* | LOST*) rm "$errors"; give_up "$state"; return ;;
    esac
    [ "$state" = "$told" ] || echo "$name is $state ..." >&2
    told=$state
    sleep "$poll"
  done
  rm "$errors"
  created=()
  trap - INT TERM HUP
  echo "$name is there, and costs money until $0 delete $name --type=$type --zone=$zone" >&2
}

install_code() {
  local archive=$logs/pinjax.tar.gz failures=0
  find_workers || return
  [ -n "$dry" ] || mkdir -p "$logs"
  call git archive --format=tar.gz "--output=$archive" HEAD || return
  until copy_to_all "$archive"; do  # a new host takes a while until it answers
    [ $((++failures)) -lt 12 ] || return 1
    echo "$name does not answer yet ..." >&2
    sleep "$poll"
  done
  on_all 'mkdir -p pinjax && tar --recursive-unlink -xzf pinjax.tar.gz -C pinjax &&'\
' cd pinjax && . launch/env.sh && install requirements.txt && install requirements-gcp.txt'
}

setup() {  # setup [--workdir=...]
  local batch=32 broken='jax.default_backend() != "tpu"'
  install_code || return
  [ -z "$devices" ] || broken+=" or jax.device_count() != $devices"
  on_all "cd pinjax && .venv/bin/python -c 'import jax, socket, sys; here = jax.local_devices();\
 print(f\"{socket.gethostname()}: {len(here)} of {jax.device_count()} x {here[0].device_kind}\");\
 sys.exit($broken)'" || {
    echo "error: the workers of $name are not ${devices:+$devices }TPU devices together" >&2
    return 1
  }
  if [ $# -eq 0 ] && [ ${#workers[@]} -gt 1 ]; then
    echo "to train :test on several hosts, too, add -- --workdir=gs://BUCKET/smoke" >&2
    return
  fi
  [ "${devices:-1}" -le "$batch" ] || batch=$devices  # it is divided over all
  train --config=configs/pinnerformer.py:test "--config.data.users=$batch" \
    "--config.evaluate.batch=$batch" "${@:---workdir=/tmp/pinjax-smoke}" || report_failure $?
}

stop_workers() {  # which save their state; and what still waits for them here
  local pid
  on_all pinjax/launch/stop.sh >/dev/null 2>&1 || true
  for pid in "${pids[@]}"; do
    pkill -P "$pid" || true
    kill "$pid" || true
  done 2>/dev/null
}

# Fails with the first worker that does. $ended is then the exit code that decides what to do, by the
# workers' logs, as ssh may not tell it.
train() {  # train ARGUMENT ...
  local i pid remote code=0 pids=() written=()
  trap 'trap "" INT TERM HUP; echo "stopping the workers of $name ..." >&2; stop_workers; exit 130' \
    INT TERM HUP
  for i in "${!workers[@]}"; do
    remote=$(printf ' %q' launch/run.sh "$@" $(process_flags "$i"))
    # A progress bar leaves a line open.
    remote="{$remote; code=\$?; echo; echo ended with \$code; exit \$code; }"
    remote="cd pinjax && launch/stop.sh && $remote"
    if [ -n "$dry" ]; then
      on_worker "${workers[i]}" "$remote"
      [ "${hosts:-2}" -eq 1 ] || echo "# and so on each other worker"
    else
      mkdir -p "$logs"
      echo "started with $*" >>"$logs/worker-$i.log"
      on_worker "${workers[i]}" "$remote" >>"$logs/worker-$i.log" 2>&1 &
      pids+=($!) written+=("$logs/worker-$i.log")
    fi
  done
  for _ in "${pids[@]}"; do
    wait -n || { code=$?; break; }
  done
  if [ "$code" -ne 0 ]; then
    sleep "$poll"  # the others may have seen it first
    ended=$(decisive_code "${written[@]}")
    stop_workers
    for pid in "${pids[@]}"; do  # a plain `wait` would leave their codes to the next `wait -n`
      wait "$pid" || true
    done
  fi
  trap - INT TERM HUP
  return "$code"
}

report_failure() {  # report_failure CODE ...: fails with it
  local i
  if [ ${#workers[@]} -eq 0 ]; then
    echo "error: the hosts of $name are not known" >&2
    return "$1"
  fi
  for i in "${!workers[@]}"; do
    tail -n 20 "$logs/worker-$i.log" >&2
  done
  echo "error: a worker ended with $*; all of it is in $logs" >&2
  return "$1"
}

run() {  # run ARGUMENT ...
  local code ended state began brief=0 failures=0
  while true; do
    code=0 ended='' began=$SECONDS
    find_workers || workers=()
    if [ ${#workers[@]} -gt 0 ]; then train "$@" || code=$?; else code=1; fi
    [ "$code" -ne 0 ] || break
    state=$(health_at_last) || { echo "error: $name: $state" >&2; return "$code"; }
    if [ "$state" != READY ] && [ -n "$spot" ]; then
      echo "$name is $state: creating it again, where the run resumes" >&2
      until delete_resources "${kinds[@]}"; do
        [ $((++failures)) -lt 60 ] || return 1
        sleep "$poll"
      done
      until create; do
        [[ $gave_up =~ ^(capacity|lost)$ ]] || return 1
        sleep $((6 * poll))
      done
      install_code || [ "$(health 2>/dev/null)" != READY ] || return 1
      continue
    fi
    if [ "$state" != READY ]; then
      echo "error: $name is $state" >&2
      return "$code"
    fi
    [ -z "$ended" ] || restarts "$ended" || report_failure "$ended" || return
    if [ $((SECONDS - began)) -lt 600 ]; then brief=$((brief + 1)); else brief=0; fi
    [ "$brief" -lt 3 ] || report_failure "${ended:-$code}" within minutes, three times || return
    echo "a worker was stopped or lost: resuming" >&2
  done
  [ -z "$delete" ] || delete_resources "${kinds[@]}"
}

health_at_last() {  # the state of the slice, GONE if it is not there; fails if it can't be known
  local state said errors failures=0
  errors=$(mktemp)
  until state=$(health 2>"$errors"); do  # which also has warnings of a call that succeeds
    said=$(<"$errors")
    case $(reason "$said") in
      missing) state=GONE; break ;;
      forbidden | disabled | outdated) failures=60 ;;
    esac
    [ $((++failures)) -lt 60 ] || { rm "$errors"; meaning "$said"; return 1; }
    [ "$failures" -gt 1 ] || echo "$name is out of sight: $(meaning "$said")" >&2
    sleep "$poll"
  done
  rm "$errors"
  echo "$state"
}

case $command in
  logs) exec tail -n +1 -F "$logs"/worker-*.log ;;
  create | status) "$command" ;;
  delete) delete_resources "${kinds[@]}" ;;
  check | setup | run) "$command" "$@" ;;
esac
