"""The text of a compiled program, as XLA writes it: computations of instructions."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)
}
_NULLARY = ("parameter", "constant")
_CALLS = ("calls", "to_apply", "body", "branch_computations", "true_computation")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]((?:\{[^}]*\})?)")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """A dense array of a program: its dimensions, its bytes, and whether it lies in main memory."""

    dims: tuple[int, ...]
    bytes: int
    main: bool


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
      name: of its result.
      arrays: its result; several for a tuple.
      opcode: of the operation.
      operands: names of other instructions; a parameter's number, or a constant's value.
      attributes: the rest of the line.
      root: whether it is the result of its computation.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self) -> list[str]:
        """Names of the computations that it runs, except a loop's condition."""
        found = []
        for attribute in _CALLS:
            match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
            if match:
                found += _NAME.findall(match[1])
        return found

    def group_size(self) -> int:
        """Devices in a group of a collective; 0 for all."""
        if match := re.search(r"replica_groups=\{\{([\d,]*)\}", self.attributes):
            return len(match[1].split(","))
        if match := re.search(r"replica_groups=\[\d+,(\d+)\]", self.attributes):
            return int(match[1])
        if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", self.attributes):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
        return 0


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of each computation, and the name of the entry computation."""
    computations, entry, current = {}, "", None
    text = re.sub(r"kernel_metadata=\{\n.*\n\}", "kernel_metadata={}", text)  # it has line breaks
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            name = _NAME.search(line)[1]
            current = computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            current.append(_instruction(line.strip()))
    return computations, entry


def parameters(body: list[Instruction]) -> Iterator[tuple[int, str]]:
    """The number and the name of each parameter of a computation."""
    for line in body:
        if line.opcode == "parameter":
            yield int(line.operands[0]), line.name


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands, attributes = rest[len(opcode) : end], rest[end:]
    return Instruction(
        name=name.removeprefix("ROOT ").lstrip("%"),
        arrays=tuple(_arrays(shape)),
        opcode=opcode,
        operands=(operands[1:-1],) if opcode in _NULLARY else tuple(_NAME.findall(operands)),
        attributes=attributes,
        root=name.startswith("ROOT "),
    )


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise ValueError(f"no closing bracket in {text[:80]}")


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        dims = tuple(int(size) for size in dims.split(",") if size)
        bits = 8 if dtype.startswith("f8") else _BITS[dtype]
        # Without a memory space it is main memory; 1 is on the chip itself.
        yield Array(dims, math.prod(dims) * bits // 8, "S(" not in layout)
