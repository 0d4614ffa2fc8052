# Sourced by run.sh and test.sh: makes .venv once for each requirements file, and puts it first.
# Set PYTHON to choose an interpreter (3.11 or newer).

cd "$(dirname "${BASH_SOURCE[0]}")/.."

install() {  # install REQUIREMENTS: does nothing where it is already installed
  local requirements=$1 python=${PYTHON:-python3} stamp
  stamp=.venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements
  [ -e "$stamp" ] && return
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "error: pinjax needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 2; }
    echo "making .venv and installing $requirements (a minute or two) ..." >&2
    "$python" -m venv .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" $(accelerator)
  touch "$stamp"
}

accelerator() {  # the jax that fits the machine, of the version in requirements.txt
  local jax driver
  jax=$(grep -o '^jax==[0-9.]*' requirements.txt)
  if [ -e /dev/accel0 ] || [ -e /dev/vfio/0 ]; then
    echo "jax[tpu]${jax#jax}"
  elif driver=$(nvidia-smi 2>/dev/null); then
    case $driver in  # the newest CUDA that it serves
      *"CUDA Version: 12"*) echo "jax[cuda12]${jax#jax}" ;;
      *) echo "jax[cuda13]${jax#jax}" ;;
    esac
  fi
}
