"""Reports of compiled programs, as a text table and as JSON."""

import collections
import dataclasses
from typing import Any

from pinjax.compiler import programs, rates


def table(reports: dict[str, programs.Report], chip: rates.Chip | None) -> str:
    """A table with a column for each program; figures are per device."""
    rows: list[tuple[str, list[str]]] = [("on each device", list(reports))]

    def add(name: str, cells: list[str]) -> None:
        rows.append((name, cells))

    names = dict.fromkeys(name for report in reports.values() for name in report.arguments)
    for name in names:
        sizes = [report.arguments.get(name) for report in reports.values()]
        add(name, ["" if size is None else rates.size(size) for size in sizes])
    add("activations", [rates.size(report.temporary) for report in reports.values()])
    add("peak memory", [rates.size(report.peak) for report in reports.values()])
    if chip:
        add(
            f"  of {rates.size(chip.memory)}",
            [f"{r.peak / chip.memory:.0%}" for r in reports.values()],
        )
    add("model FLOPs", [_flops(report.model_flops) for report in reports.values()])
    add("compiled FLOPs", [_flops(report.compiled_flops) for report in reports.values()])
    add("  loops once", [_flops(report.xla_flops) for report in reports.values()])
    add("memory traffic", [rates.size(r.traffic) for r in reports.values()])
    add("sent to others", [rates.size(r.sent) for r in reports.values()])
    if chip:
        bounds = [report.roofline for report in reports.values()]
        add("step at best", [f"{1e3 * bound.step:,.3g} ms" for bound in bounds])
        add("  bound by", [bound.bound for bound in bounds])
        shares = [b.seconds["interconnect"] / b.step if b.step else 0.0 for b in bounds]
        add("  interconnect", [f"{share:.1%}" for share in shares])
    add("compiled in", [f"{report.seconds:,.0f} s" for report in reports.values()])
    return _aligned(rows)


def collectives(report: programs.Report) -> str:
    """A table of a program's collectives by kind, with the largest of each."""
    by_kind = collections.defaultdict(list)
    for found in report.collectives:
        by_kind[found.kind].append(found)
    rows = [("collectives of a step", ["times", "sent", "most of it"])]
    for kind, found in by_kind.items():
        times, sent = sum(x.count for x in found), sum(x.sent for x in found)
        share = f"{found[0].sent / max(sent, 1e-9):.0%} {_short(found[0].source)}"
        rows.append((kind, [f"{times:,}", rates.size(sent), share]))
    return _aligned(rows) if by_kind else "no collectives"


def as_json(reports: dict[str, programs.Report]) -> dict[str, Any]:
    """All fields of the reports, for JSON."""
    result = {}
    for name, report in reports.items():
        fields = dataclasses.asdict(report) | {"sent": report.sent}
        if report.roofline:
            bound = report.roofline
            fields["roofline"] |= {"seconds": bound.seconds, "bound": bound.bound}
        result[name] = fields
    return result


def _flops(number: float) -> str:
    unit = next((u for u in (1e12, 1e9, 1e6) if number >= u), 1e6)
    return f"{number / unit:,.3g} { {1e12: 'T', 1e9: 'G', 1e6: 'M'}[unit] }"


def _short(source: str) -> str:
    """The last three parts of an operation's name."""
    return "/".join(source.split("/")[-3:])


def _aligned(rows: list[tuple[str, list[str]]]) -> str:
    """A text table: names flush left, cells flush right."""
    first = max(len(name) for name, _ in rows)
    widths = [
        max(len(cell) for cell in column) for column in zip(*(r for _, r in rows), strict=True)
    ]
    lines = []
    for name, cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([name.ljust(first), *padded]).rstrip())
    return "\n".join(lines)
