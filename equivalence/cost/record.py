"""A Cost as JSON, and back."""

from __future__ import annotations

from typing import Any

from .count import Cost, KernelCost, OperationCost, Product


def to_json(cost: Cost) -> dict[str, Any]:
    kernels = {}
    for name, x in cost.kernels.items():
        dots = [
            {
                "operands": p.operands,
                "precision": p.precision,
                "flops": n,
                "times": p.times,
                "format": p.format,
            }
            for p, n in x.flops.items()
        ]
        kernels[name] = {**vars(x), "flops": dots}
    return {
        "read": cost.read,
        "written": cost.written,
        "distinct": cost.distinct,
        "nominal_flops": cost.nominal,
        "executed_flops": cost.executed,
        "launches": cost.launches,
        "kernels": kernels,
        "operations": {name: dict(vars(x)) for name, x in cost.operations.items()},
    }


def from_json(record: dict[str, Any]) -> Cost:
    kernels = {}
    for name, x in record["kernels"].items():
        flops = {Product(p["operands"], p["precision"]): p["flops"] for p in x["flops"]}
        kernels[name] = KernelCost(**{**x, "flops": flops})
    return Cost(kernels, {name: OperationCost(**x) for name, x in record["operations"].items()})
