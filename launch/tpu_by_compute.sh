# Sourced by tpu_vm.sh for --api=compute: one host is an instance; several are a managed instance
# group, made from a template, whose workload policy connects them to a slice. All are called $name.
# The documentation, docs.cloud.google.com: compute/docs/tpus/create-tpu-vm-instance and
# create-tpu-mig-multi-host-slice, tpu/docs/spot-compute.

service=compute.googleapis.com
region=${zone%-*}
version=${version:-$image}
if [ "$hosts" -eq 1 ]; then kinds=(instance); else kinds=(group template policy); fi

request_slice() {
  local vm
  vm=("--machine-type=$machine" "--image-family=$version"
    --image-project=ubuntu-os-accelerator-images "--boot-disk-size=${disk}GB"
    --maintenance-policy=TERMINATE --scopes=cloud-platform)
  if [ "$hosts" -eq 1 ]; then
    [ -z "$spot" ] || vm+=(--provisioning-model=SPOT --instance-termination-action=DELETE)
    create_resource instance compute instances create "$name" "--zone=$zone" "${vm[@]}"
  else
    [ -z "$spot" ] || vm+=(--provisioning-model=SPOT --instance-termination-action=STOP)
    create_resource policy compute resource-policies create workload-policy "$name" \
      "--region=$region" --type=HIGH_THROUGHPUT "--accelerator-topology=$topology" &&
      create_resource template compute instance-templates create "$name" "${vm[@]}" &&
      create_resource group compute instance-groups managed create "$name" "--zone=$zone" \
        "--size=$hosts" "--template=$name" --target-size-policy-mode=bulk \
        --default-action-on-vm-failure=do-nothing \
        "--workload-policy=regions/$region/resourcePolicies/$name"
  fi
}

host_states() {  # a line for each host; MISSING is one that the group has yet to create
  if [ "$hosts" -eq 1 ]; then
    gcloud compute instances describe "$name" "--zone=$zone" '--format=value(status)'
  else
    gcloud compute instance-groups managed list-instances "$name" "--zone=$zone" \
      '--format=value(instanceStatus)' | sed 's/^$/MISSING/'
  fi
}

health() {  # READY, or how many hosts are in which state
  local counts
  counts=$(host_states | sort | uniq -c | xargs) || return
  if [ "$counts" = "$hosts RUNNING" ]; then echo READY; else echo "$counts"; fi
}

progress() {  # READY, FAILED or LOST and why, or how far the creation is
  local state why=''
  state=$(health) || return
  case $state in
    READY) echo READY; return ;;
    *STOP* | *TERMINATED* | *SUSPEND*) echo "LOST $state"; return ;;
  esac
  # A group waits for capacity, and says so. It would wait for quota, too.
  [ "$hosts" -eq 1 ] ||
    why=$(gcloud compute instance-groups managed describe "$name" "--zone=$zone" \
      '--format=value(status.bulkInstanceOperation.lastProgressCheck.error.errors)') || return
  case $why in
    *QUOTA_EXCEEDED*) echo "FAILED $why" ;;
    *) echo "waiting for hosts: ${state:-0} of $hosts $why" ;;
  esac
}

deletion() {  # deletion KIND: sets $words to the command
  case $1 in
    instance) words=(compute instances delete "$name" "--zone=$zone" --quiet) ;;
    group) words=(compute instance-groups managed delete "$name" "--zone=$zone" --quiet) ;;
    template) words=(compute instance-templates delete "$name" --quiet) ;;
    policy) words=(compute resource-policies delete "$name" "--region=$region" --quiet) ;;
  esac
}

status() {
  if [ "$hosts" -eq 1 ]; then
    cloud compute instances describe "$name" "--zone=$zone" '--format=value(status)'
  else
    cloud compute instance-groups managed list-instances "$name" "--zone=$zone"
  fi
}

find_workers() {  # sets $workers, what on_worker calls them, and $first, the address of the first
  local words
  workers=("$name") first=''
  [ "$hosts" -gt 1 ] || return 0
  words=(compute instance-groups managed list-instances "$name" "--zone=$zone"
    '--format=value(instance.basename())')
  if [ -n "$dry" ]; then
    cloud "${words[@]}"
    workers=(WORKER) first=INTERNAL_IP_OF_THE_FIRST
    return
  fi
  workers=($(gcloud "${words[@]}" | sort))
  if [ ${#workers[@]} -ne "$hosts" ]; then
    echo "error: $name has ${#workers[@]} of $hosts hosts" >&2
    return 1
  fi
  first=$(gcloud compute instances describe "${workers[0]}" "--zone=$zone" \
    '--format=value(networkInterfaces[0].networkIP)')
}

on_worker() {  # on_worker WORKER COMMAND
  cloud compute ssh "$1" "--zone=$zone" "--command=$2"
}

on_all() {  # on_all COMMAND: at the same time; fails if one does
  local worker pid pids=() code=0
  for worker in "${workers[@]}"; do
    on_worker "$worker" "$1" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || code=$?
  done
  return "$code"
}

copy_to_all() {  # copy_to_all FILE: into their home directories
  local worker
  for worker in "${workers[@]}"; do
    cloud compute scp "$1" "$worker:" "--zone=$zone" || return
  done
}

process_flags() {  # process_flags I: of pinjax.train; which metadata there are is not documented
  [ -z "$first" ] || echo "--coordinator=$first:8482" "--processes=$hosts" "--process=$1"
}

describe_api() {
  if [ "$hosts" -eq 1 ]; then
    echo "Compute Engine, an instance: $machine"
  else
    echo "Compute Engine, a managed instance group: $hosts x $machine"
  fi
}

check_availability() {
  local python='Ubuntu 22.04 with Python 3.10; setup brings a newer Python'
  [[ $version != *-2404-* ]] || python='Ubuntu 24.04 with Python 3.12'
  verify zone "$zone has $machine" \
    compute machine-types describe "$machine" "--zone=$zone" '--format=value(name)'
  verify image "$version, $python" \
    compute images describe-from-family "$version" --project=ubuntu-os-accelerator-images \
    '--format=value(name)'
}
