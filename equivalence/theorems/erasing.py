"""The delta rule and the general erasure in floating point: the public operator against a plain loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ...kernels import recurrence
from ...kernels.operator import DELTA_FORMS
from ..theorem import Collection, Counterexample, Side
from .examples import Expected, drawn

THEOREMS = Collection(
    {
        "exact": "delta/gradient-chunk, -/gradient-recurrent and -/gradient-body have it",
        "bitwise": "lattice/delta has it",
        "bound": "delta/gradient-chunk and -/gradient-recurrent have it",
        "text": "of the core alone; mixers/*/streaming run it on text",
    }
)

HEADS = ((1, 1, 1), (2, 2, 1), (4, 2, 4))  # H, Hq, Hk
DECAYS = ("none", "[H]", "[B,T,H]", "[B,T,H,K]")
TOLERANCE = 1e-11  # of the largest number: what an erasure leaves may be small against what it erases from
OVER = (
    "float64, through kernels.recurrence, against a loop; by beta in [0, 2] or by x and y; random shapes "
    "(T to 20), keys of length one, heads shared or not, decays none, constant, scalar, vector, with 0, "
    "-50 and -inf among them, both reads and directions, all chunk sizes"
)


@dataclass(frozen=True)
class Case:
    """Arguments of `recurrence` with an erasure; the numbers in them follow from `seed`."""

    length: int
    heads: tuple[int, int, int]
    decay: str
    general: bool
    read: str
    reverse: bool
    chunk_size: int
    initial: bool
    batch: int
    key_dim: int
    value_dim: int
    seed: int

    def __str__(self) -> str:
        H, Hq, Hk = self.heads
        return (
            f"B = {self.batch}, T = {self.length}, H = {H} (Hq = {Hq}, Hk = {Hk}), K = {self.key_dim}, "
            f"V = {self.value_dim}, float64, log_decay {self.decay}, {'erase' if self.general else 'beta'}, "
            f"read={self.read!r}, reverse={self.reverse}, chunk_size={self.chunk_size}, "
            f"initial state {'random' if self.initial else 'none'}, seed {self.seed}"
        )

    def tensors(self) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(self.seed)
        B, T, (H, Hq, Hk), K, V = self.batch, self.length, self.heads, self.key_dim, self.value_dim

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=g, dtype=torch.float64)

        def unit(*sizes: int) -> Tensor:
            return torch.nn.functional.normalize(normal(*sizes), dim=-1)

        found = {"q": normal(B, T, Hq, K), "k": unit(B, T, Hk, K), "v": normal(B, T, H, V)}
        share = 2 * torch.rand(B, T, H, generator=g, dtype=torch.float64)
        if self.general:
            found["y"] = unit(B, T, H, K)
            found["x"] = -share[..., None] * unit(B, T, H, K)
        else:
            found["beta"] = share
        if self.decay != "none":
            sizes = {"[H]": (H,), "[B,T,H]": (B, T, H), "[B,T,H,K]": (B, T, H, K)}[self.decay]
            la = -torch.rand(*sizes, generator=g, dtype=torch.float64)
            kind = torch.rand(*sizes, generator=g)
            for i, special in enumerate((0.0, -50.0, -math.inf)):
                la = la.masked_fill((kind > 0.7 + i / 10) & (kind < 0.8 + i / 10), special)
            found["log_decay"] = la
        if self.initial:
            found["initial_state"] = normal(B, H, K, V)
        return found


cases = st.builds(
    Case,
    length=st.integers(1, 20),
    heads=st.sampled_from(HEADS),
    decay=st.sampled_from(DECAYS),
    general=st.booleans(),
    read=st.sampled_from(("after", "before")),
    reverse=st.booleans(),
    chunk_size=st.sampled_from((1, 2, 3, 4, 8, 64)),
    initial=st.booleans(),
    batch=st.integers(1, 2),
    key_dim=st.integers(1, 4),
    value_dim=st.integers(1, 4),
    seed=st.integers(0, 1000),
)

Run = tuple[Tensor, Tensor]


def _operator(case: Case, x: dict[str, Tensor], form: str) -> Run:
    return recurrence(
        x["q"],
        x["k"],
        x["v"],
        x.get("log_decay"),
        beta=x.get("beta"),
        erase=(x["x"], x["y"]) if case.general else None,
        initial_state=x.get("initial_state"),
        read=case.read,
        reverse=case.reverse,
        chunk_size=case.chunk_size,
        form=form,
    )


def loop(case: Case, x: dict[str, Tensor]) -> Run:
    """The recurrence as its definition says it; shares no code with the core."""
    (B, T, H, V), K = x["v"].shape, x["k"].shape[-1]
    q, k = (x[n].repeat_interleave(H // x[n].shape[2], 2) for n in ("q", "k"))
    la = x.get("log_decay", torch.zeros(H, dtype=torch.float64))
    la = la[None, None, :, None] if la.ndim == 1 else la if la.ndim == 4 else la[..., None]
    a = la.exp().expand(B, T, H, K)
    S = x.get("initial_state", q.new_zeros(B, H, K, V))
    outputs: list[Any] = [None] * T
    for t in reversed(range(T)) if case.reverse else range(T):
        decayed = a[:, t, :, :, None] * S
        if case.general:
            read = (S * x["y"][:, t, :, :, None]).sum(-2)  # of the state as it was
            new = (
                decayed
                + x["x"][:, t, :, :, None] * read[:, :, None]
                + k[:, t, :, :, None] * x["v"][:, t, :, None]
            )
        else:
            error = x["v"][:, t] - (decayed * k[:, t, :, :, None]).sum(-2)
            new = decayed + (x["beta"][:, t, :, None] * k[:, t])[..., None] * error[:, :, None]
        seen = new if case.read == "after" else S
        outputs[t] = (seen * q[:, t, :, :, None]).sum(-2)
        S = new
    return torch.stack(outputs, 1), S


def _named(form: str, run: Run) -> dict[str, Tensor]:
    return {f"the {form} form, outputs": run[0], f"the {form} form, final state": run[1]}


def _expected(x: Tensor) -> Expected:
    return Expected(x, max(float(x.abs().amax()), 1.0), TOLERANCE)


def _sides(form: str) -> tuple[Any, Any]:
    def found(case: Case) -> dict[str, Tensor]:
        return _named(form, _operator(case, case.tensors(), form))

    def wanted(case: Case) -> dict[str, Expected]:
        return {name: _expected(y) for name, y in _named(form, loop(case, case.tensors())).items()}

    return found, wanted


for _form in ("recurrent", "parallel", "chunk"):
    THEOREMS.also(f"delta/{_form}", "property", OVER)(drawn(cases, 30, 300, _sides(_form)))


def _gradients(case: Case, run: Any) -> dict[str, Tensor]:
    """Of all operands, from random gradients of the results."""
    x = {n: y.requires_grad_() for n, y in case.tensors().items()}
    g = torch.Generator().manual_seed(case.seed + 1)
    loss = torch.zeros((), dtype=torch.float64)
    for y in run(case, x):
        loss = loss + (y * torch.randn(y.shape, generator=g, dtype=torch.float64)).sum()
    found = torch.autograd.grad(loss, list(x.values()), allow_unused=True)
    return {n: torch.zeros_like(y) if d is None else d for (n, y), d in zip(x.items(), found, strict=True)}


def _by_forms(case: Case) -> dict[str, Tensor]:
    found = {}
    for form in DELTA_FORMS:
        for name, d in _gradients(case, lambda case, x, form=form: _operator(case, x, form)).items():
            if name == "log_decay" and (d[case.tensors()[name] == -math.inf] != 0).any():
                raise Counterexample(f"the {form} form: the gradient is not 0 where the decay is, for {case}")
            found[f"the {form} form, gradient of {name}"] = d
    return found


def _by_loop(case: Case) -> dict[str, Expected]:
    reference = _gradients(case, loop)
    if "log_decay" in reference:  # autograd of exp(-inf) is 0 times what may be anything
        reference["log_decay"] = reference["log_decay"].masked_fill(case.tensors()["log_decay"].isneginf(), 0)
    return {
        f"the {form} form, gradient of {name}": _expected(d)
        for form in DELTA_FORMS
        for name, d in reference.items()
    }


THEOREMS(
    "delta/gradients",
    "The gradients of all operands, by every form of the operator with an erasure, are those of a plain "
    "loop; exactly 0 for a log-decay of -inf.",
    OVER.replace(", through kernels.recurrence, against a loop", ""),
    "property",
    formula="∂x = ∂(<∂o, o> + <∂S_T, S_T>)/∂x,  x over q, k, v, log a, β or x and y, S_0",
    left=Side("kernels.recurrence with beta or erase, in every form, through torch.autograd", _by_forms),
    right=Side("autograd through a plain loop, which shares no code with the core", _by_loop),
)(drawn(cases, 15, 150))
