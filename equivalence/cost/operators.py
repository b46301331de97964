"""The calls of the recurrence that are counted: operators of given shapes, and those that a mixer makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels import OuterDecay
from ...kernels.triton_core.aot import DTYPES

# name -> what it is. D is the head dim: keys and values of a head.
OPERATORS = {
    "none": "no decay; one head, K = V = D",
    "scalar": "a decay per step and head; one head, K = V = D",
    "vector": "a decay per key (GLA); one head, K = V = D",
    "both": "decays per key and per value; one head, K = V = D",
    "delta": "the delta rule, no decay; one head, K = V = D",
    "gated_delta": "the delta rule and a decay per step and head; one head, K = V = D",
    "kda": "the delta rule and a decay per key; one head, K = V = D",
    "dplr": "erase=(x, y) and a decay per key (RWKV-7); one head, K = V = D",
    "hgrn": "elementwise, decays per value; one head, K = 1, V = 64",
    "mamba1": "OuterDecay; 64 channels as heads, K = 16, V = 1, q and k shared by all",
}
FIXED = {"hgrn": (1, 1, 1, 64), "mamba1": (64, 1, 16, 1)}  # heads, heads of q and k, K, V

# name -> what is different from a plain call: read="after", forward in time, one sequence, no state.
VARIANTS = {
    "state": "an initial state, and a gradient of the final one",
    "before": 'read="before"',
    "reverse": "time runs backwards",
    "packed": "two sequences packed into one row, of 3/8 and 5/8 of the length",
    "mask": "every eighth step is padding",
}


@dataclass(frozen=True)
class Case:
    """What is counted: a call, and how it is run.

    operator: of OPERATORS; or mixer: of the registry, with d_model.
    head_dim: D, which FIXED operators do not have (None) and mixers choose themselves (None).
    target: whose plan the kernels follow: block sizes, precisions, schedule "auto".
    """

    operator: str | None = None
    mixer: str | None = None
    length: int = 512
    head_dim: int | None = None
    d_model: int | None = None
    dtype: str = "bfloat16"
    schedule: str = "fused"
    target: str = "sm_90"
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.operator or str(self.mixer)

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"variants": list(self.variants)}

    @staticmethod
    def of(record: dict[str, Any]) -> Case:
        return Case(**(record | {"variants": tuple(record["variants"])}))


@dataclass
class Call:
    """One call of the recurrence.

    Attributes:
        operands: arguments of `recurrence` which are tensors (or an OuterDecay, or a pair), by name.
        options: its other arguments, but for backend and schedule.
        final: whether the final state is used, so that it has a gradient.
    """

    operands: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    final: bool = False

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that is read, by name."""
        for name, x in self.operands.items():
            if isinstance(x, OuterDecay):
                yield f"{name}.dt", x.dt
                yield f"{name}.A", x.A
            elif isinstance(x, tuple):
                yield f"{name}.x", x[0]
                yield f"{name}.y", x[1]
            elif x is not None:
                yield name, x

    def differentiable(self) -> list[Tensor]:
        return [x for _, x in self.tensors() if x.requires_grad]


def call_of(case: Case) -> Call:
    """Random operands of an operator; all that can be differentiated will be."""
    assert case.operator is not None
    dtype = DTYPES[case.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    D = case.head_dim or 0
    T = case.length
    H, shared, K, V = FIXED.get(case.operator, (1, 1, D, D))
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=draw).to(dtype).requires_grad_()

    def unit(*shape: int) -> Tensor:
        x = torch.nn.functional.normalize(normal(*shape).detach().to(wide), dim=-1)
        return x.to(dtype).requires_grad_()

    def decays(*shape: int) -> Tensor:
        return (-torch.rand(shape, generator=draw) / 8).to(wide).requires_grad_()

    operands: dict[str, Any] = {
        "q": normal(1, T, shared, K),
        "k": normal(1, T, shared, K),
        "v": normal(1, T, H, V),
    }
    if case.operator in ("delta", "gated_delta", "kda", "dplr"):
        # keys of length 1, as the delta rule has them: others would make the state grow without bound
        operands["k"] = unit(1, T, shared, K)
    if case.operator in ("delta", "gated_delta", "kda"):
        operands["beta"] = torch.rand((1, T, H), generator=draw).to(wide).requires_grad_()
    if case.operator == "dplr":
        operands["erase"] = unit(1, T, shared, K), unit(1, T, shared, K)
    if case.operator in ("scalar", "gated_delta"):
        operands["log_decay"] = decays(1, T, H)
    if case.operator in ("vector", "both", "kda", "dplr"):
        operands["log_decay"] = decays(1, T, H, K)
    if case.operator in ("both", "hgrn"):
        operands["log_decay_v"] = decays(1, T, H, V)
    if case.operator == "mamba1":
        dt = torch.rand((1, T, H), generator=draw).to(wide).requires_grad_()
        operands["log_decay"] = OuterDecay(dt, decays(H, K))
    sequences = 1
    if "packed" in case.variants:
        operands["cu_seqlens"] = torch.tensor([0, 3 * T // 8, T])
        sequences = 2
    if "state" in case.variants:
        operands["initial_state"] = normal(sequences, H, K, V, dtype=wide)
    if "mask" in case.variants:
        operands["mask"] = (torch.arange(T) % 8 != 7)[None]
    options: dict[str, Any] = {}
    if "before" in case.variants:
        options["read"] = "before"
    if "reverse" in case.variants:
        options["reverse"] = True
    return Call(operands, options, "state" in case.variants)


def calls_of_mixer(case: Case) -> list[Call]:
    """The calls of the recurrence that a layer makes for x [1, T, d_model]: the core of the layer alone.

    Operands are as the layer hands them over, expanded dimensions included; those have gradients that have
    them in the layer. Empty if the layer has no recurrence (softmax)."""
    from ...mixers import base, registry

    assert case.mixer is not None and case.d_model is not None
    dtype = DTYPES[case.dtype]
    calls: list[Call] = []
    tensors = ("beta", "erase", "initial_state", "cu_seqlens", "mask")
    recurrence = base.recurrence

    def own(x: Any) -> Any:
        """The operand as a leaf."""
        if isinstance(x, OuterDecay):
            return OuterDecay(own(x.dt), own(x.A))
        if isinstance(x, tuple):
            return tuple(own(z) for z in x)
        return None if x is None else x.detach().requires_grad_(x.requires_grad)

    def record(q: Tensor, k: Tensor, v: Tensor, la: Any = None, lb: Any = None, **named: Any) -> Any:
        operands = {"q": q, "k": k, "v": v, "log_decay": la, "log_decay_v": lb}
        operands |= {name: named[name] for name in tensors if named.get(name) is not None}
        options = {
            name: x for name, x in named.items() if name not in (*tensors, "backend", "schedule", "form")
        }
        calls.append(Call({name: own(x) for name, x in operands.items()}, options))
        return recurrence(q, k, v, la, lb, **{**named, "backend": "torch"})

    torch.manual_seed(0)
    layer = registry.build(case.mixer, case.d_model).to(dtype)
    layer.backend = "torch"
    base.recurrence = record  # type: ignore[assignment]
    try:
        layer(torch.randn(1, case.length, case.d_model).to(dtype))
    finally:
        base.recurrence = recurrence
    return calls
