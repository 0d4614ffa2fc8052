# Sourced by tpu_vm.sh: what the cloud's words mean. They are those of docs.cloud.google.com:
#   compute/docs/troubleshooting/troubleshooting-resource-availability, troubleshooting-vm-creation
#   compute/docs/instance-groups/view-cancel-vm-bulk-creation-in-migs
#   compute/docs/reference/rest/v1/errors
#   tpu/docs/troubleshooting, tpu/docs/queued-resources

reason() {  # reason WORDS
  case $1 in
    LOST*) echo lost ;;
    *SERVICE_DISABLED* | *"has not been used in project"*) echo disabled ;;
    *ALREADY_EXISTS* | *"already exists"*) echo exists ;;
    *QUOTA_EXCEEDED* | *quotaExceeded* | *"Quota "*" exceeded"* | *"Quota limit "*) echo quota ;;
    *ZONE_RESOURCE_POOL_EXHAUSTED* | *"does not have enough resources available"* | \
      *"no more capacity in the zone"* | *"is currently unavailable in the"*) echo capacity ;;
    *PERMISSION_DENIED* | *"Required '"*"' permission"*) echo forbidden ;;
    *"does not exist in zone"* | *machineTypes/*"was not found"* | *acceleratorTypes/*"was not found"* | \
      *"ccelerator type"*"not"*) echo zone ;;
    *NOT_FOUND* | *"was not found"*) echo missing ;;
    *) echo other ;;
  esac
}

meaning() {  # meaning WORDS: one line, with what to do about it
  local said what=''
  read -r said < <(tr -s '[:space:]' ' ' <<<"$1") || true
  case $(reason "$1") in
    lost) what="it was taken away while it was made; create it again" ;;
    disabled) what="the project does not have the API: gcloud services enable $service" ;;
    exists) what="there is one of this name; choose another name, or delete it" ;;
    quota) what="the project's quota is too small for $type in $zone; ask for more in the console" ;;
    capacity) what="$zone has no capacity for $type now; try another zone, or later" ;;
    forbidden) what="your account may not do this; ask for the role" ;;
    zone) what="$zone does not have $type; choose another zone" ;;
    missing) what="$zone does not have it" ;;
  esac
  echo "${what:+$what: }${said:0:400}"
}
