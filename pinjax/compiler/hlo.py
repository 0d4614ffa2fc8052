"""The cost of a compiled program on each device, from its text.

XLA's own `cost_analysis` counts the body of a loop once, but the layers of a transformer and the
blocks of a loss are loops. Here a body counts as often as it runs, if the compiler knows that, and
collectives are counted by kind.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from pinjax.compiler import hlo_text

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

# Names for what is elsewhere, or the start of what another instruction ends.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "iota",
    "while",
    "call",
    "call-start",
    "conditional",
    "partition-id",
    "replica-id",
    "opt-barrier",
)


@dataclasses.dataclass
class Collective:
    """Collectives of one kind and source.

    Attributes:
      kind: one of `COLLECTIVES`.
      source: JAX's name of the operation that it comes from.
      count: number of runs.
      sent: bytes that each device sends in all runs, if a ring does it.
    """

    kind: str
    source: str
    count: int = 0
    sent: float = 0.0


@dataclasses.dataclass
class Cost:
    """The cost of a call of a program on each device.

    Attributes:
      flops: of matrix products and convolutions.
      bytes: read from and written to main memory, each instruction by itself.
      collectives: by kind and source, the largest first.
      unknown_loops: number of loops that are left out, as their iterations are unknown.
    """

    flops: float
    bytes: float
    collectives: list[Collective]
    unknown_loops: int


def cost(text: str) -> Cost:
    """The cost of a program, from `compiled.as_text()`."""
    return _Walk(text).cost()


class _Walk:
    """Sums over the computations of a program, with loops as often as they run."""

    def __init__(self, text: str):
        self._computations, self._entry = hlo_text.parse(text)
        self._devices = int((re.search(r"num_partitions=(\d+)", text) or [0, 1])[1])
        self._collectives: dict[tuple[str, str], Collective] = {}
        self._channels: set[str] = set()
        self._unknown = 0
        self._flops = self._bytes = 0.0

    def cost(self) -> Cost:
        self._visit(self._entry, 1, fused=False)
        largest = sorted(self._collectives.values(), key=lambda found: -found.sent)
        return Cost(self._flops, self._bytes, largest, self._unknown)

    def _visit(self, name: str, times: int, fused: bool) -> None:
        by_name = self._names(name)
        for line in self._computations[name]:
            kind = line.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                self._add_collective(kind, line, by_name, times, fused)
            elif kind in ("dot", "convolution") or _is_cublas(line):
                self._flops += times * _product_flops(line, by_name)
            if not fused:
                self._bytes += times * self._traffic(line, by_name)
            if kind in COLLECTIVES or line.opcode in ("reduce", "sort", "scatter", "map"):
                continue  # what they apply is a scalar's work
            inside = fused or kind == "fusion"
            runs = times * self._trips(line) if line.opcode == "while" else times
            called = line.called()
            if line.opcode == "conditional":  # a bound on a step has the cheaper branch
                called = [min(called, key=self._branch_traffic)]
            for computation in called if runs else ():
                self._visit(computation, runs, inside)

    def _branch_traffic(self, name: str) -> int:
        by_name = self._names(name)
        return sum(self._traffic(line, by_name) for line in by_name.values())

    @functools.cache  # noqa: B019, a walk lives as long as one call
    def _names(self, name: str) -> dict[str, hlo_text.Instruction]:
        return {line.name: line for line in self._computations[name]}

    def _trips(self, line: hlo_text.Instruction) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line.attributes):
            return int(known[1])
        # The TPU compiler does not say. A scan of JAX counts from 0 by 1 while below a constant.
        condition = self._names(re.search(r"condition=%([\w.\-]+)", line.attributes)[1])
        root = next(inner for inner in condition.values() if inner.root)
        if root.opcode == "compare" and "direction=LT" in root.attributes:
            counter, limit = (condition[name] for name in root.operands)
            if counter.opcode == "get-tuple-element" and limit.opcode == "constant":
                return int(limit.operands[0])
        self._unknown += 1
        return 0

    def _add_collective(self, kind, line, by_name, times, fused) -> None:
        operands = sum(a.bytes for name in line.operands for a in by_name[name].arrays)
        n = line.group_size() or self._devices
        factor = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": n - 1,
            "collective-permute": 1,
            "collective-broadcast": 1,
        }.get(kind, (n - 1) / n)
        source = (re.search(r'op_name="([^"]*)"', line.attributes) or ["", ""])[1].replace(
            "\\'", "'"
        )
        # TPUs hide a collective behind several fusions, each of which names it. Outside of fusions
        # all that a shard_map calls for may be on one channel.
        channel = re.search(r"channel_id=(\d+)", line.attributes)
        if fused and channel:
            if channel[1] in self._channels:
                return
            self._channels.add(channel[1])
        found = self._collectives.setdefault((kind, source), Collective(kind, source))
        found.count += times
        found.sent += times * factor * operands

    def _traffic(self, line: hlo_text.Instruction, by_name: dict[str, hlo_text.Instruction]) -> int:
        """Bytes of main memory that an instruction reads and writes."""
        opcode = line.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0
        arrays = line.arrays[:1] if _is_cublas(line) else line.arrays  # then scratch space
        results = sum(array.bytes for array in arrays if array.main)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * results
        reads = [sum(a.bytes for a in by_name[name].arrays if a.main) for name in line.operands]
        if opcode in ("dynamic-update-slice", "scatter"):
            return 2 * sum(reads[1:])
        if opcode == "slice-start":  # a part of a copy; its result names its operand first
            operand, part = line.arrays[:2]
            return part.bytes * (operand.main + part.main)
        if opcode.endswith("-start"):  # its result names its operands, too
            return max(results, sum(reads))
        if opcode != "fusion":
            return results + sum(reads)
        (called,) = line.called()
        for number, name in hlo_text.parameters(self._computations[called]):
            touched, written = self._touched(called, name)
            if written and touched < reads[number]:  # in place: the rest of it is not written
                results = max(0, results - reads[number]) + touched
                touched = 0
            reads[number] = min(reads[number], touched)
        return results + sum(reads)

    def _touched(self, computation: str, name: str) -> tuple[int, bool]:
        """Bytes of an array that a fusion touches, and whether it updates it in place."""
        by_name, touched, written = self._names(computation), 0, False
        for use in self._users(computation)[name]:
            place = use.operands.index(name)
            if use.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
                touched += sum(array.bytes for array in use.arrays)
            elif use.opcode == "dynamic-update-slice" and place == 0:
                touched += sum(array.bytes for array in by_name[use.operands[1]].arrays)
                written = True
            elif use.opcode == "scatter" and place == 0:  # which reads what it adds to, too
                touched += 2 * sum(array.bytes for array in by_name[use.operands[2]].arrays)
                written = True
            elif use.opcode == "bitcast":
                more, updated = self._touched(computation, use.name)
                touched, written = touched + more, written or updated
            elif use.opcode == "fusion":
                (called,) = use.called()
                inner = dict(hlo_text.parameters(self._computations[called]))[place]
                more, updated = self._touched(called, inner)
                touched, written = touched + more, written or updated
            else:
                touched += sum(array.bytes for array in by_name[name].arrays)
        return touched, written

    @functools.cache  # noqa: B019
    def _users(self, computation: str) -> dict[str, list[hlo_text.Instruction]]:
        users = collections.defaultdict(list)
        for line in self._computations[computation]:
            for operand in dict.fromkeys(line.operands):
                users[operand].append(line)
        return users


def _is_cublas(line: hlo_text.Instruction) -> bool:
    """Whether it is a matrix product by NVIDIA's library."""
    return line.opcode == "custom-call" and 'custom_call_target="__cublas' in line.attributes


def _product_flops(line: hlo_text.Instruction, by_name: dict[str, hlo_text.Instruction]) -> float:
    left, right = (by_name[name].arrays[0].dims for name in line.operands[:2])
    outputs = math.prod(line.arrays[0].dims)
    if line.opcode in ("dot", "custom-call"):
        contracted = re.search(
            r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)[\]}]', line.attributes
        )[1]
        return 2.0 * outputs * math.prod(left[int(i)] for i in re.findall(r"\d+", contracted))
    # TPUs write a matrix product as a convolution.
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    left_labels, right_labels, out_labels = labels[1], labels[2], labels[3]
    window = re.search(r"window=\{([^}]*)\}", line.attributes)
    fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    flops = 2.0 * right[right_labels.index("i")]
    flops *= math.prod(line.arrays[0].dims[out_labels.index(label)] for label in "bf")
    for axis in sorted(set(out_labels) - set("bf")):
        inputs = left[left_labels.index(axis)]
        kernel, result = (
            right[right_labels.index(axis)],
            line.arrays[0].dims[out_labels.index(axis)],
        )
        flops *= _positions(fields, int(axis), inputs, kernel, result)
    return flops


def _positions(fields: dict[str, str], axis: int, inputs: int, kernel: int, outputs: int) -> int:
    """The number of pairs of an output and a kernel position along an axis that meet an input.

    Batched products are convolutions over dilated inputs, whose positions are mostly empty.
    """

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    dilation = int(field("lhs_dilate", "1"))
    low = int(field("pad", "0_0").split("_")[0])
    place = np.arange(outputs)[:, None] * int(field("stride", "1")) - low
    place = place + np.arange(kernel) * int(field("rhs_dilate", "1"))
    inside = (place >= 0) & (place <= (inputs - 1) * dilation) & (place % dilation == 0)
    return int(inside.sum())
