"""Model FLOPs: the matrix products of a function, from its shapes alone."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def of_matmuls(function: Callable[..., Any], *args: Any, devices: int = 1) -> int:
    """FLOPs of all matrix products of a function as it is written.

    A multiplication and an addition count as two. A product in a loop counts as often as the loop
    runs; of the branches of a condition, the most expensive one counts.

    Args:
      function: to trace.
      *args: arrays or their shapes.
      devices: how often a product under `shard_map` counts, since every device computes it.

    Raises:
      ValueError: a product is in a loop with an unknown number of iterations.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, devices)


def _count(jaxpr: core.Jaxpr, devices: int) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            terms = math.prod(shape[axis] for axis in contracted)
            total += 2 * terms * math.prod(equation.outvars[0].aval.shape)
            continue
        found = jaxprs(params)
        inner = [_count(jaxpr, devices) for jaxpr in found]
        if name == "while" and sum(inner):
            raise ValueError("a matrix product in a loop of unknown length")
        if name == "cond":
            inner = [max(inner)]
        times = {"scan": params.get("length"), "shard_map": devices}.get(name, 1)
        total += times * sum(inner)
    return total


def jaxprs(params: dict[str, Any]) -> list[core.Jaxpr]:
    """The programs inside an operation: bodies of loops, branches, functions."""
    is_program = (core.ClosedJaxpr, core.Jaxpr)
    leaves = jax.tree.leaves(params, is_leaf=lambda value: isinstance(value, is_program))
    found = [value for value in leaves if isinstance(value, is_program)]
    return [getattr(value, "jaxpr", value) for value in found]
