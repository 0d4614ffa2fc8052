# Sourced by tpu_vm.sh: what an error message of the cloud means. Compute Engine's messages are from
# docs.cloud.google.com:
#   compute/docs/troubleshooting/troubleshooting-resource-availability
#   compute/docs/reference/rest/v1/errors
#   compute/docs/instance-groups/view-cancel-vm-bulk-creation-in-migs
# No page lists those of the Cloud TPU API: Google's gcpdiag has that of no capacity, the others are
# from users' reports.

reason() {  # reason MESSAGE: one word
  case $1 in
    LOST*) echo lost ;;
    *"unrecognized arguments"*) echo outdated ;;
    *SERVICE_DISABLED* | *"has not been used in project"*) echo disabled ;;
    *ALREADY_EXISTS* | *"already exists"*) echo exists ;;
    *QUOTA_EXCEEDED* | *quotaExceeded* | *"Quota "*" exceeded"* | *"Quota limit "*) echo quota ;;
    *ZONE_RESOURCE_POOL_EXHAUSTED* | *"does not have enough resources available"* | \
      *"no more capacity in the zone"* | *"is currently unavailable in the"*) echo capacity ;;
    *PERMISSION_DENIED* | *"Required '"*"' permission"*) echo forbidden ;;
    *"does not exist in zone"* | *machineTypes/*"was not found"* | \
      *acceleratorTypes/*"was not found"*) echo zone ;;
    *NOT_FOUND* | *"was not found"*) echo missing ;;
    *) echo other ;;
  esac
}

meaning() {  # meaning MESSAGE: one line, with what to do about it
  local said what=''
  read -r said < <(tr -s '[:space:]' ' ' <<<"$1") || true
  case $(reason "$1") in
    lost) what="it was preempted or deleted while it was being created; create it again" ;;
    outdated) what="this gcloud is too old; run gcloud components update" ;;
    disabled) what="the API is not enabled in this project; run gcloud services enable $service" ;;
    exists) what="the name is taken; choose another, or delete what has it" ;;
    quota) what="the project's quota is too small for $type in $zone; request more" ;;
    capacity) what="$zone has no capacity for $type now; try another zone, or later" ;;
    forbidden) what="your account is not permitted to do this; ask for the IAM role" ;;
    zone) what="$zone does not have $type; choose another zone" ;;
    missing) what="not found in $zone" ;;
  esac
  echo "${what:+$what: }${said:0:400}"
}
