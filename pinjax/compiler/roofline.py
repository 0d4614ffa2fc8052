"""The shortest time of a step: the slowest of arithmetic, memory and interconnect."""

import dataclasses

from pinjax.compiler import rates


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The shortest times of a step by each of three bounds (Williams et al., 2009).

    Attributes:
      chip: with the rates.
      flops: model FLOPs of a chip, without recomputation.
      bytes: of memory, read and written by a chip.
      sent: bytes that a chip sends to others.
    """

    chip: rates.Chip
    flops: float
    bytes: float
    sent: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by bound."""
        return {
            "compute": self.flops / self.chip.flops,
            "HBM": self.bytes / self.chip.bandwidth,
            "interconnect": self.sent / self.chip.interconnect,
        }

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.get)

    @property
    def step(self) -> float:
        """Seconds of a step, if all three overlap perfectly."""
        return max(self.seconds.values())

    def formula(self) -> str:
        """The formula of the estimate, with its numbers."""
        chip = self.chip
        times = ", ".join(f"{name} {1e3 * s:,.2f} ms" for name, s in self.seconds.items())
        return (
            f"max({self.flops / 1e12:,.3g} TFLOP / {chip.flops / 1e12:,.0f} TFLOP/s, "
            f"{self.bytes / 1e9:,.3g} GB / {chip.bandwidth / 1e9:,.0f} GB/s, "
            f"{self.sent / 1e9:,.3g} GB / {chip.interconnect / 1e9:,.0f} GB/s)\n"
            f"= max({times})\n"
            f"= {1e3 * self.step:,.2f} ms, bound by {self.bound}"
        )
