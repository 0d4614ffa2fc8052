# Sourced by the other scripts: makes .venv once for each requirements file, and installs into it.
# Where the system has no Python that fits, uv brings one. Set PYTHON to choose an interpreter
# (3.11 or newer).

export PYTHONDONTWRITEBYTECODE=  # uv compiles nothing, so that the first use of a module does
uv_version=0.13.9  # each release has one Python 3.11, so that both are pinned

cd "$(dirname "${BASH_SOURCE[0]}")/.."

install() {  # install REQUIREMENTS: does nothing where it is already installed
  local requirements=$1 python stamp
  stamp=.venv/installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements
  [ -e "$stamp" ] && return
  # Each command has to succeed, also where a caller's && or || turns `set -e` off.
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then  # it may have been interrupted
    python=$(find_python) || return
    echo "making .venv and installing $requirements (a minute or two) ..." >&2
    "$python" -m venv .venv || return
  fi
  pip_install -r "$requirements" $(accelerator) || return
  touch "$stamp"
}

# By uv, several times as fast; by pip where uv fails, which does not read pip's settings.
pip_install() {
  local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
  {
    "${pip[@]}" "uv==$uv_version" &&
      .venv/bin/uv pip install --quiet --python=.venv/bin/python "$@"
  } 2>/dev/null || "${pip[@]}" "$@"
}

find_python() {  # prints one that fits: $PYTHON, the system's, or the one that uv downloads
  local candidate uv=$PWD/.venv-uv/uv needs="pinjax needs Python 3.11 or newer with venv"
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.1{1,2,3}; fi
  for candidate; do
    # Debian and Ubuntu have ensurepip, without which venv fails, in a package of its own.
    if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
      echo "$candidate"
      return
    fi
  done
  [ -z "${PYTHON:-}" ] || { echo "error: $needs, which PYTHON=$PYTHON is not" >&2; return 2; }
  {
    [ -x "$uv" ] || curl --connect-timeout 20 -LsSf "https://astral.sh/uv/$uv_version/install.sh" |
      UV_UNMANAGED_INSTALL=${uv%/*} sh >/dev/null
    "$uv" --no-config python install --quiet --no-bin 3.11 &&
      "$uv" --no-config python find --managed-python 3.11
  } 2>/dev/null || {
    echo "error: $needs, and uv cannot download it: install python3.11 and python3.11-venv," \
      "or set PYTHON=/path/to/it" >&2
    return 2
  }
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
