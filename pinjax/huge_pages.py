"""Memory in pages of 2 MiB, where the system has them.

On a CPU a step asks the system for all of its arrays anew, and in pages of 4 KiB that is a quarter
of its time (benchmarks/huge_pages.py).
"""

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"


def request() -> None:
    """Begins the command anew unless it has this setting, which glibc reads at its start."""
    if sys.platform == "linux" and _TUNABLES not in os.environ:
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
