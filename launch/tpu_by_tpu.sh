# Sourced by tpu_vm.sh for --api=tpu: a slice as a queued resource with one node, both called $name.
# The documentation: docs.cloud.google.com/tpu/docs/queued-resources.

service=tpu.googleapis.com
kinds=(queued-resource)
version=${version:-$runtime}

request_slice() {
  create_resource queued-resource compute tpus queued-resources create "$name" "--zone=$zone" \
    "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$version" ${spot:+--spot}
}

progress() {  # READY, FAILED or LOST and why, or how far the creation is
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

health() {  # READY, or the state of the node
  gcloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state)'
}

deletion() { words=(compute tpus queued-resources delete "$name" "--zone=$zone" --force --quiet); }

status() {
  cloud compute tpus queued-resources describe "$name" "--zone=$zone" '--format=value(state.state)'
  cloud compute tpus tpu-vm describe "$name" "--zone=$zone" '--format=value(state,health)'
}

find_workers() {  # sets $workers, what on_worker calls them
  local count=1 words
  words=(compute tpus tpu-vm describe "$name" "--zone=$zone"
    '--format=value(networkEndpoints.len())')
  if [ -n "$dry" ]; then cloud "${words[@]}"; else count=$(gcloud "${words[@]}") || return; fi
  workers=($(seq 0 $((count - 1))))  # process substitutions would be jobs of `wait -n`
}

on_worker() {  # on_worker WORKER COMMAND
  cloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" "--command=$2"
}

on_all() { on_worker all "$1"; }

copy_to_all() {  # copy_to_all FILE: into their home directories
  cloud compute tpus tpu-vm scp "$1" "$name:" "--zone=$zone" --worker=all
}

process_flags() { :; }  # JAX finds the other workers in the metadata of the API

describe_api() { echo "Cloud TPU API, a queued resource"; }

check_availability() {
  verify zone "$zone has $type" \
    compute tpus tpu-vm accelerator-types describe "$type" "--zone=$zone" '--format=value(type)'
  verify runtime "$version, Ubuntu 22.04 with Python 3.10; setup brings a newer Python" \
    compute tpus tpu-vm versions describe "$version" "--zone=$zone" '--format=value(version)'
}
