"""What the manifests of everything that is made from a run say of the run."""

import hashlib
import json
from typing import Any

import jax
from ml_collections import ConfigDict

from pinjax.distributed import processes
from pinjax.systems import system as system_lib
from pinjax.training import workdirs


def of_run(
    config: ConfigDict, system: system_lib.System, params: Any, step: int
) -> dict[str, int | str]:
    """The step, and hashes of the parameters, the config and what `system.identity` has."""
    depends_on = json.dumps(workdirs.depends_on(config), sort_keys=True)
    return {
        "step": step,
        "checkpoint": _hash_of_arrays(params),
        **system.identity,
        "config": hashlib.sha256(depends_on.encode()).hexdigest(),
    }


def _hash_of_arrays(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(processes.gathered(leaf).tobytes())
    return digest.hexdigest()
