# Sourced by tpu_vm.sh: what would be made, and what is wrong with it.

problems=0

tell() { printf '%-9s%s\n' "$1" "$2"; }

flaw() { tell "$1" "PROBLEM: $2"; problems=1; }

inquire() {  # inquire LABEL FACT WORD ...: whether the cloud agrees, by a command that only reads
  local said
  if [ -n "$dry" ]; then
    cloud "${@:3}"
  elif said=$(gcloud "${@:3}" 2>&1); then
    tell "$1" "$2"
  else
    flaw "$1" "$(meaning "$said")"
  fi
}

check_bucket() {  # check_bucket gs://BUCKET/...
  local where kind words
  words=(storage buckets describe "gs://$(cut -d/ -f3 <<<"$1")" '--format=value(location,location_type)')
  if [ -n "$dry" ]; then
    cloud "${words[@]}"
  elif ! where=$(gcloud "${words[@]}" 2>&1); then
    flaw bucket "$(meaning "$where")"
  else
    read -r where kind <<<"${where,,}"
    case $where in
      "${zone%-*}") tell bucket "${words[3]} is in $where, as the slice" ;;
      *) tell bucket "${words[3]} is in $where ($kind), the slice in ${zone%-*}: slower, and traffic may cost" ;;
    esac
  fi
}

check() {
  local argument config=() workdir=''
  for argument in "$@"; do
    case $argument in
      --workdir=*) workdir=${argument#*=} ;;
      --config*) config+=("$argument") ;;
    esac
  done
  if [ -z "$dry" ]; then
    tell slice "$type: $chips chips, $devices devices, topology $topology${spot:+, spot}"
    tell how "$(how)"
    tell disk "$disk GB on each host"
  fi
  check_zone
  case $workdir in
    gs://*) check_bucket "$workdir" ;;
    *) [ "$hosts" -eq 1 ] || [ -n "$dry" ] || flaw workdir "$hosts hosts need --workdir=gs://..." ;;
  esac
  if [ ${#config[@]} -gt 0 ]; then
    config=(.venv/bin/python -m pinjax.compile "${config[@]}" "--topology=$target")
    if [ -n "$dry" ]; then
      show "${config[@]}"
    else
      (
        source launch/env.sh
        install requirements.txt && .venv/bin/python -m pip install --quiet \
          --disable-pip-version-check --no-deps -r requirements-compile.txt && "${config[@]}"
      ) || flaw config "see above"
    fi
  fi
  return "$problems"
}
