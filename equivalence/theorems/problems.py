"""The recurrence on field elements: what the exact theorems range over."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ...kernels import OuterDecay, delta, forms, recurrence
from ...kernels.order import AFTER, ALL_ORDERS, Order
from ...kernels.steps import Slice, Steps
from ..algebra import Element, Field, Integer, Log
from ..theorem import Budget, Side

KEY_DECAYS = ("none", "[H]", "[B,T,H]", "[B,T,H,K]", "dt·A")
VALUE_DECAYS = ("none", "[H,V]", "[B,T,H,V]")
HEADS = ((1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 2, 1), (4, 2, 4))  # H, Hq, Hk
LARGEST_EXPONENT = 3  # of dt·A, whose A are small whole numbers here: exp(dt·A) is a power of exp(dt)


class Operands(NamedTuple):
    """The arguments of a recurrence, in the public layout and the order of `Steps`."""

    q: Any
    k: Any
    v: Any
    log_decay: Any
    outer: Any
    log_decay_v: Any
    initial_state: Any
    scale: int
    beta: Any = None
    x: Any = None
    y: Any = None


@dataclass(frozen=True)
class Problem:
    """One shape of arguments."""

    length: int
    block: int = 4
    order: Order = AFTER
    reverse: bool = False
    heads: tuple[int, int, int] = (1, 1, 1)
    key_decay: str = "[B,T,H,K]"
    value_decay: str = "[B,T,H,V]"
    batch: int = 2
    key_dim: int = 2
    value_dim: int = 3
    erasing: str = "none"  # "beta": the delta rule; "x, y": the general form

    def __str__(self) -> str:
        H, Hq, Hk = self.heads
        time = "reversed time" if self.reverse else "forward time"
        return (
            f"T = {self.length} in blocks of {self.block}, order {self.order.events}, {time}, "
            f"B = {self.batch}, H = {H} (Hq = {Hq}, Hk = {Hk}), K = {self.key_dim}, V = {self.value_dim}, "
            f"log_decay {self.key_decay}, log_decay_v {self.value_decay}"
            + (f", erasing by {self.erasing}" if self.erasing != "none" else "")
        )

    @property
    def degree(self) -> int:
        """Of outputs and state, in all operands: at most T decays a and T of b (or T erasures, each of β, k
        twice and a, or of x and y), times q, k, v and scale. A form that erases, or whose decays differ
        between keys, may divide by each decay, for every step of its block at most once: so much more when
        denominators are cleared."""
        decays = LARGEST_EXPONENT if self.key_decay == "dt·A" else 1
        erases = self.erasing != "none"
        divides = erases or self.key_decay in ("[B,T,H,K]", "dt·A")
        cleared = divides * decays * self.length * min(self.block, self.length)
        return (1 + decays + 3 * erases) * self.length + 4 + cleared

    def operands(self, rng: np.random.Generator, dual: bool = False, zeros: float = 0.0) -> Operands:
        """A random point; `zeros` is the share of decays that are 0 (the point is uniform in the others)."""
        B, T, (H, Hq, Hk), K, V = self.batch, self.length, self.heads, self.key_dim, self.value_dim

        def field(*sizes: int) -> Field:
            return Field.random(rng, *sizes, dual=dual)

        def log(*sizes: int) -> Log:
            return Log.random(rng, *sizes, dual=dual, zeros=zeros)

        key_sizes = {"[H]": (H,), "[B,T,H]": (B, T, H), "[B,T,H,K]": (B, T, H, K), "dt·A": (B, T, H)}
        value_sizes = {"[H,V]": (H, V), "[B,T,H,V]": (B, T, H, V)}
        outer = None
        if self.key_decay == "dt·A":
            outer = Integer(rng.integers(0, LARGEST_EXPONENT + 1, (H, K)))
        return Operands(
            field(B, T, Hq, K),
            field(B, T, Hk, K),
            field(B, T, H, V),
            log(*key_sizes[self.key_decay]) if self.key_decay in key_sizes else None,
            outer,
            log(*value_sizes[self.value_decay]) if self.value_decay in value_sizes else None,
            field(B, H, K, V),
            int(rng.integers(2, 1 << 60)),
            field(B, T, H) if self.erasing == "beta" else None,
            # As many heads as queries have, and as keys: neither need be those of the values.
            field(B, T, Hq, K) if self.erasing == "x, y" else None,
            field(B, T, Hk, K) if self.erasing == "x, y" else None,
        )


def steps(x: Operands, reverse: bool = False) -> Steps:
    return Steps(*x[:6], beta=x.beta, x=x.x, y=x.y, scale=x.scale, reverse=reverse)


class Run(NamedTuple):
    """What a recurrence returns."""

    outputs: Any  # [B, T, H, V]
    state: Any  # [B, H, K, V], after the last step


def run_form(form: str, p: Problem, x: Operands) -> Run:
    """Outputs and the final state, by the form that runs in production."""
    available = forms.FORMS if p.erasing == "none" else delta.FORMS
    pieces, state = available[form](steps(x, p.reverse), x.initial_state, p.order, p.block)
    outputs = torch.cat([piece.transpose(1, 2) for piece in pieces], 1)
    return Run(outputs.flip(1) if p.reverse else outputs, state)


def called(leaves: Mapping[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The public operator on tensors by the names of `Operands`, those that are absent left out."""
    la: Any = leaves.get("log_decay")
    if "outer" in leaves:
        la = OuterDecay(la, leaves["outer"])
    return recurrence(
        leaves["q"],
        leaves["k"],
        leaves["v"],
        la,
        leaves.get("log_decay_v"),
        beta=leaves.get("beta"),
        erase=(leaves["x"], leaves["y"]) if "x" in leaves else None,
        initial_state=leaves["initial_state"],
        **options,
    )


def definition(p: Problem, x: Operands) -> Run:
    """The recurrence step by step, all in one block."""
    return run_form("recurrent", but(p, block=max(p.length, 1)), x)


def but(p: Problem, **changes: Any) -> Problem:
    return replace(p, **changes)


def in_time(x: Operands, f: Any) -> Operands:
    """f on every operand that varies in time."""
    la, lb = x.log_decay, x.log_decay_v
    erasing: dict[str, Any] = {
        n: None if y is None else f(y) for n, y in (("beta", x.beta), ("x", x.x), ("y", x.y))
    }
    return x._replace(
        q=f(x.q),
        k=f(x.k),
        v=f(x.v),
        log_decay=la if la is None or la.ndim == 1 else f(la),
        log_decay_v=lb if lb is None or lb.ndim == 2 else f(lb),
        **erasing,
    )


def values(x: Operands) -> Operands:
    """x without tangents."""
    found: dict[str, Any] = {n: y.value() for n, y in x._asdict().items() if isinstance(y, Element)}
    return x._replace(**found)


def body_lengths(budget: Budget) -> Sequence[int]:
    """Of the blocks that are proved one by one."""
    return FEW_LENGTHS if budget.quick else range(1, 65)


FEW_LENGTHS = (1, 2, 3, 4, 7, 8, 13, 33)


def every_step(c: Slice, S: Any, order: Order) -> tuple[Any, list[Any]]:
    """The definition: the outputs of all steps, and the states before them and after each."""
    outputs, states = [], [S]
    for t in range(c.v.shape[-2]):
        o, S = forms.walk(one_step(c, t), S, order)
        outputs.append(o)
        states.append(S)
    return torch.cat(outputs, -2), states


EVERY_STEP = Side("n steps of the definition, one after the other", every_step)


# ------------------------------------------------------------------ what they range over


def problems(budget: Budget, orders: Sequence[Order] = ALL_ORDERS) -> list[Problem]:
    """Decays × orders × directions × lengths, smallest first; heads and blocks vary along the way.

    A quick run takes every seventh, which all kinds of everything are among.
    """
    lengths = (1, 2, 3, 5, 9) if budget.quick else (1, 2, 3, 4, 5, 7, 9, 14, 21)
    blocks = (1, 2, 3, 4, 5, 8, 64)
    found = []
    everything = itertools.product(KEY_DECAYS, VALUE_DECAYS, orders, (False, True), lengths)
    for i, (key, value, order, reverse, T) in enumerate(everything):
        if budget.quick and i % 7:
            continue
        found.append(Problem(T, blocks[i // 7 % 7], order, reverse, HEADS[i % 5 - i // 35 % 5], key, value))
    return sorted(found, key=lambda p: (p.length, p.heads, p.block))


def blocks_of(kind: str) -> tuple[str, str]:
    """Key and value decay of a kind of block."""
    return {
        "no decay": ("none", "none"),
        "scalar": ("[B,T,H]", "none"),
        "keys": ("[B,T,H,K]", "none"),
        "values": ("none", "[B,T,H,V]"),
        "scalar, values": ("[B,T,H]", "[B,T,H,V]"),
        "keys, values": ("[B,T,H,K]", "[B,T,H,V]"),
    }[kind]


def first_steps(c: Slice, n: int) -> Slice:
    return Slice(*(None if x is None else x[..., :n, :] for x in c))


def one_step(c: Slice, t: int) -> Slice:
    return Slice(*(None if x is None else x[..., t : t + 1, :] for x in c))
