"""Every test runs on eight CPU devices, so that sharding is exercised everywhere.

TEST_PLATFORM=cuda launch/test.sh tests/models/test_attention.py has a GPU's kernel tested on it.
"""

import os
import signal

import jax
import pytest

jax.config.update("jax_platforms", os.environ.get("TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # compiles three times faster


# A shell's background jobs ignore Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def rng(request):
    """A NumPy generator seeded by the test's own name."""
    import zlib

    import numpy as np

    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
