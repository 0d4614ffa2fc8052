"""The devices to compile for: those at hand, or a slice of TPUs that is not."""

import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from pinjax.errors import InputError


def devices(topology: str | None) -> Sequence[jax.Device]:
    """The devices of a topology such as v5e:4x4; those at hand if None.

    Raises:
      InputError: if there is no such topology, or no TPU compiler.
    """
    if topology is None:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise InputError(
            "--topology needs the TPU compiler: pip install --no-deps -r requirements-compile.txt"
        )
    jax.config.update("jax_platforms", "cpu")  # else JAX looks for the TPU itself
    os.environ |= _WITHOUT_TPU
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"--topology={topology} is none like v5e:4x4 or v5p:2x2x4: {line}"
        ) from None


# Neither asks Cloud TPU's metadata server, nor logs that nobody answers.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else one process at a time: its lock is for the chips
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
