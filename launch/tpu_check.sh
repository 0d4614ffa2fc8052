# Sourced by tpu_vm.sh: `check`, what `create` would make, and what is wrong with it.

problems=0

report() { printf '%-9s%s\n' "$1" "$2"; }  # report LABEL FACT

problem() { report "$1" "PROBLEM: $2"; problems=1; }

verify() {  # verify LABEL FACT WORD ...: reports the fact if this gcloud command succeeds
  local said
  if [ -n "$dry" ]; then
    cloud "${@:3}"
  elif said=$(gcloud "${@:3}" 2>&1); then
    report "$1" "$2"
  else
    problem "$1" "$(meaning "$said")"
  fi
}

check_bucket() {  # check_bucket gs://BUCKET/...: whether it is near the slice
  local bucket region=${zone%-*} words said errors where kind
  bucket=gs://$(cut -d/ -f3 <<<"$1")
  words=(storage buckets describe "$bucket" '--format=value(location,location_type)')
  if [ -n "$dry" ]; then
    cloud "${words[@]}"
  elif errors=$(mktemp) && ! said=$(gcloud "${words[@]}" 2>"$errors"); then
    problem bucket "$(meaning "$(<"$errors")")"
    rm "$errors"
  else
    rm "$errors"
    read -r where kind <<<"${said,,}"
    if [ "$where" = "$region" ]; then
      report bucket "$bucket is in $where, like the slice"
    else
      report bucket "$bucket is in $where ($kind), the slice in $region: slower, traffic may cost"
    fi
  fi
}

check() {  # check ARGUMENT ...: those that `run` would pass on
  local argument config=() workdir=''
  for argument in "$@"; do
    case $argument in
      --workdir=*) workdir=${argument#*=} ;;
      --config*) config+=("$argument") ;;
    esac
  done
  if [ -z "$dry" ]; then
    report slice "$type, $chips chips, $devices devices, topology $topology${spot:+, spot}"
    report api "$(describe_api)"
    report disk "$disk GB on each host"
  fi
  check_availability
  case $workdir in
    gs://*) check_bucket "$workdir" ;;
    *) [ $# -eq 0 ] || [ "$hosts" -eq 1 ] || problem workdir "$hosts hosts need one on gs://" ;;
  esac
  if [ ${#config[@]} -gt 0 ]; then
    config=(.venv/bin/python -m pinjax.compile "${config[@]}" "--topology=$target")
    if [ -n "$dry" ]; then
      show "${config[@]}"
    else
      (
        source launch/env.sh
        install requirements.txt && pip_install --no-deps -r requirements-compile.txt &&
          "${config[@]}"
      ) || problem config "it does not compile for $target; see above"
    fi
  fi
  return "$problems"
}
