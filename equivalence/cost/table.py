"""The tables that `mixerzoo cost` prints."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from .record import from_json


def kilobytes(n: float) -> str:
    """In units of 1,000 bytes."""
    return f"{n / 1000:,.1f}" if n < 1e6 else f"{n / 1000:,.0f}"


def millions(n: float) -> str:
    return f"{n / 1e6:,.2f}" if n < 1e8 else f"{n / 1e6:,.0f}"


def times(n: float, least: float) -> str:
    return f"{n / least:.2f}" if n and least else "-"


def label(record: dict[str, Any]) -> str:
    """What was counted, in a few characters: operator, K×V."""
    case, shape = record["case"], record["shape"]
    name = case["operator"] or case["mixer"]
    if record["call"]:
        name += f" #{record['call'] + 1}"
    return f"{name} {shape['K']}×{shape['V']}"


class Rows:
    """A table whose rows begin with what was counted; the target is named where there are several."""

    def __init__(
        self, title: str, records: list[dict[str, Any]], left: tuple[str, ...], right: tuple[str, ...]
    ):
        cases = [r["case"] for r in records]
        targets = dict.fromkeys(c["target"] for c in cases)
        self.several = len(targets) > 1
        more = (
            (c["dtype"] for c in cases),
            (f"T = {c['length']}" for c in cases),
            *(c["variants"] for c in cases),
        )
        about = dict.fromkeys((*targets, *(x for some in more for x in some)))
        self.table = Table(
            box=box.SIMPLE_HEAD,
            title=f"{title} ({', '.join(about)})",
            title_justify="left",
            title_style="bold",
            padding=(0, 1, 0, 0),
        )
        for column in ("operator", *(["target"] if self.several else []), "pass", "schedule", *left):
            self.table.add_column(column, no_wrap=True)
        for column in right:
            self.table.add_column(column, justify="right", no_wrap=True)
        self.last = ""

    def add(self, record: dict[str, Any], name: str, *cells: str, style: str | None = None) -> None:
        """A row of one pass (name)."""
        case = record["case"]
        first = label(record)
        if self.last not in ("", first):
            self.table.add_section()
        self.last = first
        target = [case["target"]] if self.several else []
        self.table.add_row(first, *target, name, case["schedule"], *cells, style=style)


def counts(records: list[dict[str, Any]]) -> Table:
    """A row for each pass of each call: bytes, products, launches, and the first two against the least."""
    rows = Rows(
        "Counted", records, (),
        ("moved kB", "×least", "distinct kB", "×least", "MFLOP", "×least", "launches"),
    )  # fmt: skip
    for record in records:
        for name, one in record["passes"].items():
            cost, least = from_json(one["cost"]), one["least"]
            rows.add(
                record,
                name,
                kilobytes(cost.moved),
                times(cost.moved, least["bytes"]),
                kilobytes(cost.distinct),
                times(cost.distinct, least["bytes"]),
                millions(cost.executed) if cost.executed else "-",
                times(cost.executed, least["flops"]),
                f"{sum(x.launches for x in cost.kernels.values())} + "
                f"{sum(x.calls for x in cost.operations.values())}",
            )
    return rows.table


def kernels(records: list[dict[str, Any]]) -> Table:
    """A row for each kernel and each torch operation of each pass."""
    costs = [from_json(one["cost"]) for record in records for one in record["passes"].values()]
    atomic = any(x.atomic for cost in costs for x in cost.kernels.values())
    rows = Rows(
        "By kernel", records, ("kernel",),
        ("launches", "programs", "read kB", "written kB", "distinct kB", *(["atomic kB"] if atomic else []),
         "MFLOP", "products", "M arith.", "M special"),
    )  # fmt: skip
    for record in records:
        for name, one in record["passes"].items():
            cost = from_json(one["cost"])
            for kernel, x in cost.kernels.items():
                rows.add(
                    record, name, kernel, str(x.launches), str(x.programs), kilobytes(x.read),
                    kilobytes(x.written), kilobytes(x.distinct), *([kilobytes(x.atomic)] if atomic else []),
                    millions(x.nominal),
                    ", ".join(f"{p}{f' ({p.times}×)' if p.times > 1 else ''}" for p in x.flops) or "-",
                    millions(x.arithmetic), millions(x.special),
                )  # fmt: skip
            for operation, y in cost.operations.items():
                rows.add(
                    record, name, f"torch {operation}", str(y.calls), "-", kilobytes(y.read),
                    kilobytes(y.written), kilobytes(y.moved), *(["-"] if atomic else []),
                    millions(y.flops), "-", "-", "-",
                )  # fmt: skip
    return rows.table


SHORT = {"registers": "regs", "shared memory": "shared", "warps": "warps", "programs": "most"}


def machine(records: list[dict[str, Any]]) -> Table:
    """A row for each kernel that was compiled."""
    rows = Rows(
        "Compiled", records, ("kernel", "block"),
        ("warps", "regs", "spill", "shared B", "fit", "matrix", "float", "MUFU", "global l/s", "shared l/s",
         "bar.", "shfl"),
    )  # fmt: skip
    for record in records:
        for row in record["compiled"]:
            kinds, fit = row["kinds"], row["occupancy"]
            rows.add(
                record, row["pass"], row["kernel"], row["block"], str(row["warps"]), str(row["registers"]),
                str(row["spills"]), f"{row['shared']:,}", f"{fit['programs']} {SHORT[fit['limit']]}",
                str(kinds["matrix"]), str(kinds["float"]), str(kinds["special"]),
                f"{kinds['global load']}/{kinds['global store']}",
                f"{kinds['shared load']}/{kinds['shared store']}", str(kinds["barrier"]),
                str(kinds["shuffle"]), style="red" if row["spills"] or not fit["programs"] else None,
            )  # fmt: skip
    return rows.table


def modelled(records: list[dict[str, Any]], measured: bool) -> Table:
    """A row for each pass of each call on each card and number of sequences."""
    rows = Rows(
        "Modelled, not measured: peak rates, no latencies", records, ("card",),
        ("sequences", "µs model", "×least", "bound by", "of the card",
         *(("µs measured", "× model") if measured else ())),
    )  # fmt: skip
    for record in records:
        for name, one in record["passes"].items():
            for m in one["model"]:
                real = m.get("measured_seconds")
                more = (f"{real * 1e6:,.1f}", times(real, m["seconds"])) if real else ("-", "-")
                rows.add(
                    record,
                    name,
                    m["card"],
                    str(m["sequences"]),
                    f"{m['seconds'] * 1e6:,.2f}",
                    times(m["seconds"], m["least_seconds"]),
                    m["bound"],
                    f"{m['share']:.0%}",
                    *(more if measured else ()),
                )
    return rows.table
