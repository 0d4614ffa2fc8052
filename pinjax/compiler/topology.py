"""The devices to compile for: the local ones, or a TPU slice without its hardware."""

import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from pinjax.errors import InputError


def devices(topology: str | None) -> Sequence[jax.Device]:
    """The devices of a topology such as v5e:4x4; the local devices if None.

    Raises:
      InputError: if there is no such topology, or no TPU compiler.
    """
    if topology is None:
        return jax.devices()
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise InputError(
            "--topology needs the TPU compiler: pip install --no-deps -r requirements-compile.txt"
        )
    jax.config.update("jax_platforms", "cpu")  # or JAX would look for a TPU
    os.environ |= _WITHOUT_TPU
    options = {}
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as on a VM
    if re.fullmatch(r"\w+:1(x1)+", topology):
        options["chips_per_host_bounds"] = (1, 1, 1)  # a host has four chips otherwise
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise InputError(
            f"--topology={topology} is none like v5e:4x4 or v5p:2x2x4: {line}"
        ) from None


# libtpu does not query the metadata server of Cloud TPU, and logs no failures.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock on chips would allow one process
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
