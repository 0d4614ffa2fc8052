# Sourced by tpu_vm.sh: a slice by Compute Engine. One host is an instance; several are a managed
# instance group whose workload policy connects them, and its template. All are called $name. The
# documentation, docs.cloud.google.com/compute/docs/tpus: create-tpu-vm-instance,
# create-tpu-mig-multi-host-slice; and tpu/docs/spot-compute.

service=compute.googleapis.com
region=${zone%-*}
version=${version:-$image}
if [ "$hosts" -eq 1 ]; then kinds=(instance); else kinds=(group template policy); fi

request() {
  local vm=("--machine-type=$machine" "--image-family=$version" --maintenance-policy=TERMINATE
    --image-project=ubuntu-os-accelerator-images "--boot-disk-size=${disk}GB" --scopes=cloud-platform)
  if [ "$hosts" -eq 1 ]; then
    [ -z "$spot" ] || vm+=(--provisioning-model=SPOT --instance-termination-action=DELETE)
    ask instance compute instances create "$name" "--zone=$zone" "${vm[@]}"
    return
  fi
  [ -z "$spot" ] || vm+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  ask policy compute resource-policies create workload-policy "$name" "--region=$region" \
    --type=HIGH_THROUGHPUT "--accelerator-topology=$topology" &&
    ask template compute instance-templates create "$name" "${vm[@]}" &&
    ask group compute instance-groups managed create "$name" "--zone=$zone" "--template=$name" \
      "--size=$hosts" --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing \
      "--workload-policy=regions/$region/resourcePolicies/$name"
}

statuses() {  # one of each host that is there
  if [ "$hosts" -eq 1 ]; then
    gcloud compute instances describe "$name" "--zone=$zone" '--format=value(status)'
  else
    gcloud compute instance-groups managed list-instances "$name" "--zone=$zone" \
      '--format=value(instanceStatus)'
  fi
}

health() {  # READY, or what the hosts are
  local found
  found=$(statuses | sed 's,^$,TO_COME,' | sort | uniq -c | tr -s ' \n' ' ') || return
  if [ "$found" = " $hosts RUNNING " ]; then echo READY; else echo "$found"; fi
}

progress() {  # READY, LOST or FAILED and why, or how far it is
  local found why=''
  found=$(health) || return
  case $found in
    READY) echo READY; return ;;
    *STOP* | *TERMINATED* | *SUSPEND*) echo "LOST $found"; return ;;
  esac
  # A group waits for capacity, and says so; a lack of quota it would wait for, too.
  [ "$hosts" -eq 1 ] ||
    why=$(gcloud compute instance-groups managed describe "$name" "--zone=$zone" \
      '--format=value(status.bulkInstanceOperation.lastProgressCheck.error.errors)') || return
  case $why in
    *QUOTA_EXCEEDED*) echo "FAILED $why" ;;
    *) echo "waiting for $hosts hosts, has$found$why" ;;
  esac
}

deletion() {
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

find_workers() {  # sets $workers, their names, and $first, the address of the first
  workers=("$name") first=''
  [ "$hosts" -gt 1 ] || return 0
  local words=(compute instance-groups managed list-instances "$name" "--zone=$zone"
    '--format=value(instance.basename())')
  if [ -n "$dry" ]; then
    cloud "${words[@]}"
    workers=(WORKER) first=INTERNAL_IP_OF_THE_FIRST
  else
    mapfile -t workers < <(gcloud "${words[@]}" | sort)
    if [ ${#workers[@]} -ne "$hosts" ]; then
      echo "error: $name has ${#workers[@]} of $hosts hosts" >&2
      return 1
    fi
    first=$(gcloud compute instances describe "${workers[0]}" "--zone=$zone" \
      '--format=value(networkInterfaces[0].networkIP)') || return
  fi
}

on_worker() {  # on_worker WORKER COMMAND
  cloud compute ssh "$1" "--zone=$zone" "--command=$2"
}

on_all() {  # on_all COMMAND: at once; fails if one does
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

copy() {  # copy FILE: into the home directory of all
  local worker
  for worker in "${workers[@]}"; do
    cloud compute scp "$1" "$worker:" "--zone=$zone" || return
  done
}

wiring() {  # wiring I: flags of pinjax.train for worker I; what JAX would look for is not documented
  [ -z "$first" ] || echo "--coordinator=$first:8482" "--processes=$hosts" "--process=$1"
}

check_zone() {
  local python='Ubuntu 22.04 with Python 3.10, setup brings a newer one'
  [[ $version != *-2404-* ]] || python='Ubuntu 24.04 with Python 3.12'
  inquire zone "$zone has $machine" \
    compute machine-types describe "$machine" "--zone=$zone" '--format=value(name)'
  inquire image "$version: $python" \
    compute images describe-from-family "$version" --project=ubuntu-os-accelerator-images \
    '--format=value(name)'
}

how() {
  if [ "$hosts" -eq 1 ]; then
    echo "Compute Engine: an instance, $machine"
  else
    echo "Compute Engine: a managed instance group of $hosts $machine"
  fi
}
