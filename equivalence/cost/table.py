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
    """What was counted, in a few characters."""
    case = record["case"]
    name = case["operator"] or case["mixer"]
    if record["call"]:
        name += f" #{record['call'] + 1}"
    return name + "".join(f" +{v}" for v in case["variants"])


def columns(found: Table, left: tuple[str, ...], right: tuple[str, ...]) -> None:
    for title in left:
        found.add_column(title, no_wrap=True)
    for title in right:
        found.add_column(title, justify="right")


def counts(records: list[dict[str, Any]]) -> Table:
    """A row for each pass of each call: bytes, products, launches, and the first two against the least."""
    found = Table(box=box.SIMPLE_HEAD, title="Counted", title_justify="left", title_style="bold")
    columns(
        found,
        ("operator", "K×V", "target", "dtype", "pass", "schedule"),
        ("moved, kB", "× least", "distinct, kB", "× least", "MFLOP executed", "× least", "kernels", "torch"),
    )
    for record in records:
        case, shape = record["case"], record["shape"]
        for name, one in record["passes"].items():
            cost, least = from_json(one["cost"]), one["least"]
            found.add_row(
                label(record),
                f"{shape['K']}×{shape['V']}",
                case["target"],
                case["dtype"],
                name,
                case["schedule"],
                kilobytes(cost.moved),
                times(cost.moved, least["bytes"]),
                kilobytes(cost.distinct),
                times(cost.distinct, least["bytes"]),
                millions(cost.executed) if cost.executed else "-",
                times(cost.executed, least["flops"]),
                str(sum(x.launches for x in cost.kernels.values())),
                str(sum(x.calls for x in cost.operations.values())),
            )
    return found


def kernels(records: list[dict[str, Any]]) -> Table:
    """A row for each kernel and each torch operation of each pass."""
    found = Table(box=box.SIMPLE_HEAD, title="By kernel", title_justify="left", title_style="bold")
    columns(
        found,
        ("operator", "K×V", "pass", "schedule", "kernel"),
        (
            "launches", "programs", "read, kB", "written, kB", "distinct, kB", "of it atomic, kB",
            "MFLOP", "products", "Marith.", "Mspecial",
        ),
    )  # fmt: skip
    for record in records:
        case, shape = record["case"], record["shape"]
        for name, one in record["passes"].items():
            cost = from_json(one["cost"])
            first = (label(record), f"{shape['K']}×{shape['V']}", name, case["schedule"])
            for kernel, x in cost.kernels.items():
                found.add_row(
                    *first, kernel, str(x.launches), str(x.programs), kilobytes(x.read), kilobytes(x.written),
                    kilobytes(x.distinct), kilobytes(x.atomic), millions(x.nominal),
                    ", ".join(f"{p}{f' ({p.times}×)' if p.times > 1 else ''}" for p in x.flops) or "-",
                    millions(x.arithmetic), millions(x.special),
                )  # fmt: skip
            for operation, y in cost.operations.items():
                found.add_row(
                    *first, f"torch {operation}", str(y.calls), "-", kilobytes(y.read), kilobytes(y.written),
                    kilobytes(y.moved), "-", millions(y.flops), "-", "-", "-",
                )  # fmt: skip
    return found
