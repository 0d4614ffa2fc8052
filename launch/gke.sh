#!/usr/bin/env bash
# A TPU slice on Google Kubernetes Engine: a job on all of its hosts, by a JobSet (launch/gke.yaml).
#
#   launch/gke.sh apply  NAME --type=v6e --topology=4x4 --image=IMAGE [--spot] \
#       [--service-account=NAME] [--placement-policy=NAME] -- \
#       --config=configs/pinnerformer.py:paper --workdir=gs://BUCKET/run
#   launch/gke.sh render NAME ...      # prints the manifest, with the arguments of `apply`
#   launch/gke.sh logs   NAME          # of all hosts, as they grow
#   launch/gke.sh status NAME
#   launch/gke.sh delete NAME          # saves its state: the same `apply` goes on
#
# --dry-run prints every kubectl command instead. Types are v5e, v5p, v6e and tpu7x. IMAGE is made
# by `git archive HEAD | docker build --tag=IMAGE -`, and pushed to a registry. The cluster is
# kubectl's own; it has JobSet, and either is of Autopilot or has a node pool of the type and
# topology. For several hosts of TPU7x, Autopilot makes that pool by a workload policy, which
# --placement-policy names. A job that was stopped or lost a host starts again by itself; one that
# fails otherwise does not.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

need_bash_4_4
[ $# -ge 2 ] || fail "expected apply, render, logs, status or delete, and a name; see $0"
command=$1 name=$2
shift 2
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "'$name' is no name: expected up to 40 small letters, digits and -, a letter first"
type='' topology='' image='' service_account=default placement_policy='' spot='' dry=''
while [ $# -gt 0 ]; do
  case $1 in
    --type=*) type=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --service-account=*) service_account=${1#*=} ;;
    --placement-policy=*) placement_policy=${1#*=} ;;
    --spot) spot=yes ;;
    --dry-run) dry=yes ;;
    --) shift; break ;;
    *) fail "$1 is no option; training arguments come after --" ;;
  esac
  shift
done
pods="jobset.sigs.k8s.io/jobset-name=$name"

cubes() {  # cubes TOPOLOGY CHIPS: whether it is whole cubes of 4x4x4, no more than the chips
  [[ $1 =~ ^([1-9][0-9]{0,2})x([1-9][0-9]{0,2})x([1-9][0-9]{0,2})$ ]] || return
  local a=${BASH_REMATCH[1]} b=${BASH_REMATCH[2]} c=${BASH_REMATCH[3]}
  ((a % 4 + b % 4 + c % 4 == 0 && a <= b && b <= c && a * b * c <= $2))
}

shape() {  # sets accelerator, chips (of a host) and hosts
  # As in the tables of cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
  local flat='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16' solid='2x2x1 2x2x2 2x2x4 2x4x4' shapes most=''
  case $type in
    v5e) accelerator=tpu-v5-lite-podslice shapes=$flat ;;
    v6e) accelerator=tpu-v6e-slice shapes=$flat ;;
    v5p) accelerator=tpu-v5p-slice shapes=$solid most=6144 ;;
    tpu7x) accelerator=tpu7x shapes=$solid most=9216 ;;
    *) fail "--type=$type: expected v5e, v5p, v6e or tpu7x" ;;
  esac
  [[ -n $topology && " $shapes " == *" $topology "* ]] || cubes "$topology" "${most:-0}" ||
    fail "--topology=$topology: $type has ${shapes// /, }${most:+ and AxBxC of multiples of four,\
 A <= B <= C, up to $most chips}"
  case $topology in
    1x1) chips=1 ;;
    2x4) chips=8 ;;
    *) chips=4 ;;
  esac
  hosts=$((${topology//x/*} / chips))
}

quoted() {  # quoted TEXT: for YAML, and so that Kubernetes takes no $(NAME) in it for a variable
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  echo "\"${text//\$/\$\$}\""
}

render() {  # render ARGUMENT ...
  local accelerator chips hosts arguments='' argument manifest key
  shape
  [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] ||
    fail "--image=$image: expected an image in a registry that the cluster reads"
  [[ $service_account =~ ^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$ ]] ||
    fail "--service-account=$service_account: expected the name of one of the cluster"
  [[ $placement_policy =~ ^([a-z]([-a-z0-9]*[a-z0-9])?)?$ ]] ||
    fail "--placement-policy=$placement_policy: expected the name of a workload policy"
  [[ " $*" == *" --workdir=gs://"* ]] ||
    fail "expected --workdir=gs://... after --, since what is on a pod's disk ends with it"
  manifest=$(grep -v '^#' launch/gke.yaml)
  if [ "$hosts" -eq 1 ]; then manifest=$(grep -v '# hosts$' <<<"$manifest"); fi
  if [ -z "$placement_policy" ]; then manifest=$(grep -v '# policy$' <<<"$manifest"); fi
  if [ -z "$spot" ]; then manifest=$(grep -v '# spot$' <<<"$manifest"); fi
  for argument; do arguments+=", $(quoted "$argument")"; done
  for key in name hosts service_account accelerator topology placement_policy image chips \
    arguments; do  # these last: what is in them stays as it is
    manifest=${manifest//"\$${key^^}"/"${!key}"}
  done
  echo "$manifest"
}

apply() {
  local manifest
  manifest=$(render "$@")
  # Not `kubectl apply`, by which a job that has ended would count as unchanged.
  if [ -n "$dry" ]; then
    printf "kubectl create --filename=- <<'END'\n%s\nEND\n" "$manifest"
  else
    kubectl create --filename=- <<<"$manifest"
  fi
}

case $command in
  apply | render) "$command" "$@" ;;
  logs)
    call kubectl logs "--selector=$pods" --follow --prefix --tail=-1 --max-log-requests=2304
    ;;
  status)
    call kubectl get jobset "$name"
    call kubectl get pods "--selector=$pods" "--output=custom-columns=POD:.metadata.name,\
NODE:.spec.nodeName,PHASE:.status.phase,\
CODE:.status.containerStatuses[0].state.terminated.exitCode,\
WAITS:.status.conditions[?(@.type==\"PodScheduled\")].message"
    ;;
  delete) call kubectl delete jobset "$name" --cascade=foreground ;;  # when its pods have ended
  *) fail "$command is none of apply, render, logs, status, delete" ;;
esac
