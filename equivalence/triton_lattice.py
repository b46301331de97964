"""The Triton kernels on a lattice of inputs on which nothing rounds, against a plain loop: equal bit for bit.

q, k, v, states and the gradients of results are -1, 0 or 1; decays are 1 and 0, and 1/2 at one step. So every
state, and every gradient of a state, is a multiple of 1/2 and at most 73: that is 8 bits, which bfloat16 has,
and sums of products of two have room in float32. With erasure keys have a single entry, β is 0, 1 or 2, and
everything is whole. The loop shares no code with the core; in float64 it does not round either.

Triton is told to interpret its kernels on the CPU when it is first imported: without a GPU they run in a
process of their own, which writes its results to a file (`interpreted`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import OuterDecay, step
from .interpreting import patch_language_once_a_launch
from .theorem import Counterexample
from .theorems.problems import called

# Chunks of 16 and a ragged one; split, segments of 64 and of 8. With erasure, which takes longer, less.
LENGTHS = ({"fused": 40, "split": 72}, {"fused": 24, "split": 68})
SCALE = 0.5
HALVED, FORGOTTEN = 0.5, 0.0

KEY_DECAYS = ("none", "[H]", "[B,T,H]", "[B,T,H,K]", "dt·A")
VALUE_DECAYS = ("none", "[H,V]", "[B,T,H,V]")


class Case(NamedTuple):
    """Which kernels, and with what."""

    form: str
    schedule: str = "fused"
    key_decay: str = "none"
    value_decay: str = "none"
    erasing: str = "none"
    read: str = "after"
    reverse: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        time = "reversed" if self.reverse else "forward"
        return (
            f"the {self.form} kernels, {self.schedule}, in {self.dtype}, log_decay {self.key_decay}, "
            f"log_decay_v {self.value_decay}, erasing by {self.erasing}, read {self.read}, {time} time"
        )


Tensors = dict[str, Tensor]

# ------------------------------------------------------------------ inputs


def _ternary(g: torch.Generator, *sizes: int) -> Tensor:
    return torch.randint(-1, 2, sizes, generator=g).double()


def _unit(g: torch.Generator, *sizes: int) -> Tensor:
    """Vectors of the last dimension with a single entry, 1 or -1."""
    *lead, D = sizes
    one = torch.nn.functional.one_hot(torch.randint(D, lead, generator=g), D)
    return one * (2.0 * torch.randint(2, (*lead, 1), generator=g) - 1).double()


def _factors(g: torch.Generator, halves: bool, *sizes: int) -> Tensor:
    """Decays [B, T, ...]: a tenth of them 0 and, at one step, half of them 1/2."""
    a = torch.where(torch.rand(sizes, generator=g) < 0.1, FORGOTTEN, 1.0).double()
    if halves:
        t = int(torch.randint(sizes[1], (), generator=g))
        a[:, t] = torch.where(torch.rand(a[:, t].shape, generator=g) < 0.5, HALVED, a[:, t])
    return a


def inputs(case: Case, length: int, g: torch.Generator) -> Tensors:
    """The operands, with decays in the place of their logarithms; and the gradients of both results."""
    B, H = 1, 2
    K, V = (16, 16) if case.form == "chunk" else (4, 3)
    erases = case.erasing != "none"
    x = {"q": _ternary(g, B, length, 1, K), "v": _ternary(g, B, length, H, V)}
    x["k"] = _unit(g, B, length, H, K) if erases else _ternary(g, B, length, H, K)
    sizes = {"[B,T,H]": (B, length, H), "[B,T,H,K]": (B, length, H, K)}
    if case.key_decay in sizes:
        x["log_decay"] = _factors(g, not erases, *sizes[case.key_decay])
    elif case.key_decay == "[H]":
        x["log_decay"] = torch.tensor([1.0, FORGOTTEN], dtype=torch.float64)
    elif case.key_decay == "dt·A":
        x["log_decay"] = torch.zeros(B, length, H, dtype=torch.float64)  # dt
        x["log_decay"][:, length // 2] = 1
        kinds = torch.tensor([1.0, FORGOTTEN, 1.0 if erases else HALVED], dtype=torch.float64)
        x["outer"] = kinds[torch.randint(0, 3, (H, K), generator=g)]  # exp(A)
    if case.value_decay == "[H,V]":
        x["log_decay_v"] = torch.tensor([1.0, FORGOTTEN], dtype=torch.float64)[:, None].repeat(1, V)
    elif case.value_decay == "[B,T,H,V]":
        x["log_decay_v"] = _factors(g, case.key_decay in ("none", "[H]"), B, length, H, V)
    beta = torch.randint(0, 3, (B, length, H), generator=g).double()
    if case.erasing == "beta":
        x["beta"] = beta
    elif erases:
        x["y"] = _unit(g, B, length, H, K)
        x["x"] = -beta[..., None] * x["y"]
    x["initial_state"] = _ternary(g, B, H, K, V)
    return {**x, "do": _ternary(g, B, length, H, V), "dS": _ternary(g, B, H, K, V)}


# ------------------------------------------------------------------ the two sides


def by_loop(case: Case, x: Tensors) -> Tensors:
    """Outputs, state and the gradients of all operands: the definition, step by step, and torch.autograd.

    That of a log-decay is the decay times that of the decay."""
    leaves = {n: y.clone().requires_grad_() for n, y in x.items() if n not in ("do", "dS")}
    B, T, H, V = x["v"].shape
    K = x["q"].shape[-1]
    a, b = torch.ones(B, T, H, K).double(), torch.ones(B, T, H, V).double()
    if case.key_decay == "dt·A":
        dt = leaves["log_decay"][..., None]
        a = dt * leaves["outer"] + (1 - dt)  # dt is 0 or 1
    elif case.key_decay != "none":
        a = leaves["log_decay"]
        a = a if a.ndim == 4 else a.expand(B, T, H)[..., None]
    if case.value_decay != "none":
        b = leaves["log_decay_v"].expand(B, T, H, V)
    S, outputs = leaves["initial_state"], [torch.empty(0)] * T
    for t in reversed(range(T)) if case.reverse else range(T):
        before = S
        k, write = leaves["k"][:, t, :, :, None], leaves["v"][:, t, :, None]
        S = a[:, t, :, :, None] * b[:, t, :, None] * S
        if case.erasing == "beta":
            write = leaves["beta"][:, t, :, None, None] * (write - (k * S).sum(-2, True))
        elif case.erasing != "none":
            S = S + leaves["x"][:, t, :, :, None] * (leaves["y"][:, t, :, :, None] * before).sum(-2, True)
        S = S + k * write
        read = S if case.read == "after" else before
        outputs[t] = SCALE * (leaves["q"][:, t, :, :, None] * read).sum(-2)
    o = torch.stack(outputs, 1)
    found = torch.autograd.grad((o * x["do"]).sum() + (S * x["dS"]).sum(), list(leaves.values()))
    slopes = dict(zip(leaves, found, strict=True))
    for name in ("log_decay", "log_decay_v", "outer"):
        if name in slopes:
            slopes[name] = slopes[name] * x[name]
    if case.key_decay == "dt·A":
        del slopes["log_decay"]  # that of dt has a factor A, a logarithm of 2
    return {"outputs": o.detach(), "state": S.detach(), **{f"gradient of {n}": y for n, y in slopes.items()}}


def _operands(case: Case, x: Tensors, device: str) -> Tensors:
    """As the kernels take them: logarithms and states in float32, the rest in the case's dtype."""
    wide = ("log_decay", "outer", "log_decay_v", "initial_state")
    found = {}
    for name, y in x.items():
        logarithm = name in wide[:3] and not (name == "log_decay" and case.key_decay == "dt·A")
        y = torch.where(y == HALVED, -torch.tensor(2.0).log().double(), y.log()) if logarithm else y
        found[name] = y.to(device, torch.float32 if name in wide else case.dtype).contiguous()
    return found


def by_triton(case: Case, x: Tensors, device: str) -> Tensors:
    """The same by the public operator on the Triton backend."""
    y = _operands(case, x, device)
    leaves = {n: z.requires_grad_() for n, z in y.items() if n not in ("do", "dS")}
    o, S = called(
        leaves,
        scale=SCALE,
        read=case.read,
        reverse=case.reverse,
        form=case.form,
        schedule=case.schedule,
        chunk_size=16,
        backend="triton",
    )
    slopes = torch.autograd.grad([o, S], list(leaves.values()), [y["do"], y["dS"].float()])
    named = {f"gradient of {n}": z for n, z in zip(leaves, slopes, strict=True)}
    return {"outputs": o.detach(), "state": S.detach(), **named}


def one_step_by_triton(case: Case, x: Tensors, device: str) -> Tensors:
    """Outputs and state of the kernel of one step."""
    y = _operands(case, x, device)

    def now(name: str) -> Any:
        z = y.get(name)
        return z if z is None or z.ndim < 3 or name == "initial_state" else z[:, 0]

    la = now("log_decay")
    if case.key_decay == "dt·A":
        la = OuterDecay(la, y["outer"])
    o, S = step(
        now("q"),
        now("k"),
        now("v"),
        la,
        now("log_decay_v"),
        beta_t=now("beta"),
        erase_t=(now("x"), now("y")) if "x" in y else None,
        state=now("initial_state"),
        scale=SCALE,
        read=case.read,
        backend="triton",
    )
    return {"outputs": o[:, None], "state": S}


def compare(case: Case, found: Tensors, expected: Tensors) -> None:
    """Equal bits, in the dtype of what was found.

    Raises:
        Counterexample: naming the first place where they differ.
    """
    for name, y in expected.items():
        if name not in found:
            continue
        x = found[name].cpu()
        y = y.to(x.dtype)
        if x.shape != y.shape:
            raise Counterexample(f"{name}: shape {list(x.shape)}, not {list(y.shape)}, for {case}")
        if not torch.equal(x, y):
            at = (x != y).nonzero()[0].tolist()
            raise Counterexample(f"{name} at {at}: {x[tuple(at)]} instead of {y[tuple(at)]}, for {case}")


# ------------------------------------------------------------------ what they range over

ORDERS = [("after", False), ("before", False), ("after", True), ("before", True)]
DTYPES = (torch.float32, torch.bfloat16)


# Of the combinations in their order: the first, and every how many.
SAMPLES = {"chunk": (41, 55), "recurrent": (13, 31), "delta": (46, 95), "step": (0, 7)}
MOST = {"chunk": (0, 5), "recurrent": (0, 3), "delta": (0, 5), "step": (0, 1)}


def cases(group: str, quick: bool, seed: int) -> Iterator[Case]:
    """Of "chunk", "recurrent", "delta" or "step": a sample of all combinations, which the seed shifts."""
    if group == "delta":
        kinds = [(key, "none", e) for e in ("beta", "x, y") for key in KEY_DECAYS]
    else:
        kinds = [(key, value, "none") for key in KEY_DECAYS for value in VALUE_DECAYS]
    if group == "step":
        kinds += [(key, "none", e) for e in ("beta", "x, y") for key in KEY_DECAYS]
    form = "chunk" if group == "delta" else group
    schedules = ("fused", "split") if form == "chunk" else ("fused",)
    found: Iterator[Any] = itertools.product(kinds, ORDERS, schedules, DTYPES)
    first, every = (SAMPLES if quick else MOST)[group]
    found = itertools.islice(found, (first + seed) % every, None, every)
    for (key, value, erasing), (read, reverse), schedule, dtype in found:
        if group != "step" or not reverse:
            yield Case(form, schedule, key, value, erasing, read, reverse, dtype)


# ------------------------------------------------------------------ all cases of a group


def problems(group: str, quick: bool, seed: int) -> Iterator[tuple[Case, Tensors]]:
    """The cases and their inputs, the same in whichever process."""
    g = torch.Generator().manual_seed(seed)
    for case in cases(group, quick, seed):
        length = 1 if group == "step" else LENGTHS[case.erasing != "none"][case.schedule]
        yield case, inputs(case, length, g)


def by_loops(group: str, quick: bool, seed: int) -> list[Tensors]:
    return [by_loop(case, x) for case, x in problems(group, quick, seed)]


def by_kernels(group: str, quick: bool, seed: int, device: str) -> list[Tensors]:
    """On "cuda", or on "cpu" where Triton interprets."""
    run = one_step_by_triton if group == "step" else by_triton
    found = []
    for case, x in problems(group, quick, seed):
        try:
            found.append({name: y.cpu() for name, y in run(case, x, device).items()})
        except Exception as e:  # a kernel may fail in any way, and that too is a finding
            raise Counterexample(f"{type(e).__name__}: {e}, for {case}") from e
    return found


def interpreted(group: str, quick: bool, seed: int) -> list[Tensors]:
    """by_kernels in a process whose Triton interprets.

    Raises:
        Counterexample: it failed, and how.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        command = [sys.executable, "-m", __name__, group, str(results), "--seed", str(seed)]
        ended = subprocess.run(
            [*command, *(["--quick"] if quick else [])],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise Counterexample((ended.stderr.strip().splitlines() or ["it ended without a word"])[-1])
        found: list[Tensors] = torch.load(results, weights_only=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="write what the kernels give to a file")
    parser.add_argument("group", choices=MOST)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    patch_language_once_a_launch()
    torch.save(by_kernels(args.group, args.quick, args.seed, "cpu"), args.file)


if __name__ == "__main__":
    main()
