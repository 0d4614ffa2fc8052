# Sourced by tpu_vm.sh: a slice by the Cloud TPU API, as a queued resource with one node, both called
# $name. The documentation: docs.cloud.google.com/tpu/docs/queued-resources.

service=tpu.googleapis.com
kinds=(queued)
version=${version:-$runtime}

request() {
  ask queued compute tpus queued-resources create "$name" "--zone=$zone" "--node-id=$name" \
    "--accelerator-type=$type" "--runtime-version=$version" ${spot:+--spot}
}

progress() {  # READY, LOST or FAILED and why, or how far it is
  local state why
  state=$(gcloud compute tpus queued-resources describe "$name" "--zone=$zone" \
    '--format=value(state.state,state.failedData.error.message)') || return
  IFS=$'\t' read -r state why <<<"$state"
  case $state in
    ACTIVE) echo READY ;;
    FAILED) echo "FAILED ${why:-without a reason}" ;;
    SUSPENDING | SUSPENDED | DELETING) echo "LOST $state" ;;
    *) echo "$state" ;;
  esac
}

health() {  # READY, or what it is
  gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state)'
}

deletion() { words=(compute tpus queued-resources delete "$name" "--zone=$zone" --force --quiet); }

status() {
  cloud compute tpus queued-resources describe "$name" "--zone=$zone" '--format=value(state.state)'
  cloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state,health)'
}

find_workers() {  # sets $workers, their names
  local count=1 words=(compute tpus tpu-vm describe "$name" "--zone=$zone" \
    '--format=value(networkEndpoints.len())')
  if [ -n "$dry" ]; then cloud "${words[@]}"; else count=$(gcloud "${words[@]}") || return; fi
  mapfile -t workers < <(seq 0 $((count - 1)))
}

on_worker() {  # on_worker WORKER COMMAND
  cloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" "--command=$2"
}

on_all() { on_worker all "$1"; }

copy() {  # copy FILE: into the home directory of all
  cloud compute tpus tpu-vm scp "$1" "$name:" "--zone=$zone" --worker=all
}

wiring() { :; }  # JAX finds the workers by the API's metadata

check_zone() {
  inquire zone "$zone has $type" \
    compute tpus tpu-vm accelerator-types describe "$type" "--zone=$zone" '--format=value(type)'
  inquire runtime "$version: Ubuntu 22.04 with Python 3.10, setup brings a newer one" \
    compute tpus tpu-vm versions describe "$version" "--zone=$zone" '--format=value(version)'
}

how() { echo "the Cloud TPU API: a queued resource"; }
