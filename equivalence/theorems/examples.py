"""Examples of arguments in floating point: how they are drawn, run, compared and shrunk."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import hypothesis
import torch
from hypothesis import strategies as st
from torch import Tensor

from ...kernels import OuterDecay, recurrence
from ..theorem import Budget, Check, Counterexample, Tally, is_bad

KEY_DECAYS = ("none", "[H]", "[B,T,H]", "[B,T,H,K]", "dt·A")
VALUE_DECAYS = ("none", "[H,V]", "[B,T,H,V]")
HEADS = ((1, 1, 1), (2, 2, 2), (2, 1, 2), (4, 2, 1))  # H, Hq, Hk
FORMS = ("recurrent", "chunk", "parallel", "scan", "auto")
# Half-precision outputs are rounded once, by 2^-8 or 2^-11 of themselves.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 2**-8 + 1e-5,
    torch.float16: 2**-11 + 1e-5,
}

C = TypeVar("C")


@contextmanager
def _own_draws() -> Iterator[None]:
    """Keep hypothesis from drawing constants that it reads in the source of whatever modules are loaded.

    With them the examples of a seed would depend on how this package is installed, and on what else the
    program has imported.
    """
    from hypothesis.internal.conjecture import providers

    reads = getattr(providers, "_get_local_constants", None)
    if reads is None:  # a version that does not
        yield
        return
    nothing: Any = providers.Constants()
    providers.CONSTANTS_CACHE.cache.clear()
    providers._get_local_constants = lambda: nothing
    try:
        yield
    finally:
        providers._get_local_constants = reads
        providers.CONSTANTS_CACHE.cache.clear()


def run_examples(
    budget: Budget,
    tally: Tally,
    cases: st.SearchStrategy[C],
    check: Callable[[C], float],
    quick: int,
    full: int,
) -> None:
    """`check` on drawn cases; it returns the relative error, or raises Counterexample.

    The draws are those of the budget's seed. What fails is shrunk, and its smallest case is the one reported.
    """

    def guarded(case: C) -> None:
        tally.example()
        try:
            error = check(case)
        except Counterexample:
            raise
        except Exception as e:
            raise Counterexample(f"{type(e).__name__}: {e}, for {case}") from e
        tally.error(error)

    settings = hypothesis.settings(
        max_examples=budget.pick(quick, full),
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
    )
    with _own_draws():
        hypothesis.seed(budget.seed)(settings(hypothesis.given(cases)(guarded)))()


@dataclass(frozen=True)
class Case:
    """Arguments of `recurrence`; the numbers in them follow from `seed`."""

    length: int
    heads: tuple[int, int, int]
    key_decay: str
    value_decay: str
    decays: str  # "mild": in [-1, 0]; "strong": to -50; "mixed": also 0, -1000 and -inf
    read: str
    reverse: bool
    chunk_size: int
    initial: bool
    batch: int
    key_dim: int
    value_dim: int
    seed: int
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        H, Hq, Hk = self.heads
        return (
            f"B = {self.batch}, T = {self.length}, H = {H} (Hq = {Hq}, Hk = {Hk}), K = {self.key_dim}, "
            f"V = {self.value_dim}, {str(self.dtype).removeprefix('torch.')}, log_decay {self.key_decay}, "
            f"log_decay_v {self.value_decay} ({self.decays}), read={self.read!r}, reverse={self.reverse}, "
            f"chunk_size={self.chunk_size}, initial state {'random' if self.initial else 'none'}, "
            f"seed {self.seed}"
        )


@st.composite
def cases(draw: Any, dtype: torch.dtype = torch.float64, longest: int = 20, shortest: int = 0) -> Case:
    decays = draw(st.sampled_from(("mild", "strong", "mixed")))
    return Case(
        length=draw(st.integers(shortest, longest)),
        heads=draw(st.sampled_from(HEADS)),
        key_decay=draw(st.sampled_from(KEY_DECAYS)),
        value_decay=draw(st.sampled_from(VALUE_DECAYS)),
        decays=decays,
        read=draw(st.sampled_from(("after", "before"))),
        reverse=draw(st.booleans()),
        chunk_size=draw(st.sampled_from((1, 2, 3, 4, 8, 64))),
        initial=draw(st.booleans()),
        batch=draw(st.integers(1, 2)),
        key_dim=draw(st.integers(1, 4)),
        value_dim=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 1000)),
        dtype=dtype,
    )


@dataclass(frozen=True)
class Arguments:
    """The tensors of a case, and how to run them."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Any
    log_decay_v: Tensor | None
    initial_state: Tensor | None
    scale: float
    read: str
    reverse: bool
    chunk_size: int | None

    def run(self, form: str = "auto", **options: Any) -> tuple[Tensor, Tensor]:
        return recurrence(
            self.q,
            self.k,
            self.v,
            self.log_decay,
            self.log_decay_v,
            initial_state=self.initial_state,
            scale=self.scale,
            read=self.read,
            reverse=self.reverse,
            chunk_size=self.chunk_size,
            form=form,
            **options,
        )

    def but(self, **changes: Any) -> Arguments:
        return replace(self, **changes)

    def in_time(self, f: Callable[[Tensor], Tensor]) -> Arguments:
        """f on every operand that varies in time, [B, T, ...]."""
        la, lb = self.log_decay, self.log_decay_v
        if isinstance(la, OuterDecay):
            la = OuterDecay(f(la.dt), la.A)
        elif la is not None and la.ndim > 1:
            la = f(la)
        return self.but(
            q=f(self.q),
            k=f(self.k),
            v=f(self.v),
            log_decay=la,
            log_decay_v=f(lb) if lb is not None and lb.ndim > 2 else lb,
        )

    def leaves(self) -> dict[str, Tensor]:
        """The tensors by name."""
        la = self.log_decay
        named: dict[str, Any] = {"q": self.q, "k": self.k, "v": self.v}
        named |= {"dt": la.dt, "A": la.A} if isinstance(la, OuterDecay) else {"log_decay": la}
        named |= {"log_decay_v": self.log_decay_v, "initial_state": self.initial_state}
        return {n: x for n, x in named.items() if x is not None}

    def with_leaves(self, x: dict[str, Tensor]) -> Arguments:
        la = OuterDecay(x["dt"], x["A"]) if "dt" in x else x.get("log_decay")
        return self.but(
            q=x["q"],
            k=x["k"],
            v=x["v"],
            log_decay=la,
            log_decay_v=x.get("log_decay_v"),
            initial_state=x.get("initial_state"),
        )

    def map(self, f: Callable[[str, Tensor], Tensor]) -> Arguments:
        return self.with_leaves({n: f(n, x) for n, x in self.leaves().items()})


DECAYS = ("log_decay", "log_decay_v", "dt", "A")


def arguments(case: Case) -> Arguments:
    """The tensors of a case."""
    g = torch.Generator().manual_seed(case.seed)
    B, T, (H, Hq, Hk), K, V = case.batch, case.length, case.heads, case.key_dim, case.value_dim

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=g, dtype=torch.float64).to(case.dtype)

    def log_decay(*sizes: int) -> Tensor:
        la = -torch.rand(*sizes, generator=g, dtype=torch.float64)
        kind = torch.rand(*sizes, generator=g)
        if case.decays != "mild":
            la = torch.where(kind < 0.3, 50 * la, la)
        if case.decays == "mixed":
            for i, special in enumerate((0.0, -1000.0, -math.inf)):
                la = la.masked_fill((kind > 0.7 + i / 10) & (kind < 0.8 + i / 10), special)
        return la.to(case.dtype)

    la: Any = None
    if case.key_decay == "dt·A":
        factor = {"mild": 1.0, "strong": 50.0, "mixed": 1000.0}[case.decays]
        dt = torch.rand(B, T, H, generator=g, dtype=torch.float64)
        la = OuterDecay(dt.to(case.dtype), (factor * log_decay(H, K).clamp(min=-1)).to(case.dtype))
    elif case.key_decay != "none":
        la = log_decay(*{"[H]": (H,), "[B,T,H]": (B, T, H), "[B,T,H,K]": (B, T, H, K)}[case.key_decay])
    lb = None
    if case.value_decay != "none":
        lb = log_decay(*{"[H,V]": (H, V), "[B,T,H,V]": (B, T, H, V)}[case.value_decay])
    wide = torch.promote_types(case.dtype, torch.float32)
    return Arguments(
        normal(B, T, Hq, K),
        normal(B, T, Hk, K),
        normal(B, T, H, V),
        la,
        lb,
        normal(B, H, K, V).to(wide) if case.initial else None,
        0.5,
        case.read,
        case.reverse,
        case.chunk_size,
    )


def loop(x: Arguments) -> tuple[Tensor, Tensor]:
    """The recurrence as its definition says it, a plain loop in float64 that shares no code with the core."""
    x = x.map(lambda _, y: y.double())
    (B, T, H, V), K = x.v.shape, x.k.shape[-1]
    q, k = (y.repeat_interleave(H // y.shape[2], 2) for y in (x.q, x.k))
    la, lb = x.log_decay, x.log_decay_v
    if isinstance(la, OuterDecay):
        la = la.dt[..., None] * la.A
    elif la is not None:
        la = la[None, None, :, None] if la.ndim == 1 else la if la.ndim == 4 else la[..., None]
    a = torch.ones(()) if la is None else la.exp()
    b = torch.ones(()) if lb is None else lb.exp()
    a, b = a.double().expand(B, T, H, K), b.double().expand(B, T, H, V)
    S = q.new_zeros(B, H, K, V) if x.initial_state is None else x.initial_state
    outputs: list[Any] = [None] * T
    for t in reversed(range(T)) if x.reverse else range(T):
        new = a[:, t, :, :, None] * b[:, t, :, None] * S + k[:, t, :, :, None] * x.v[:, t, :, None]
        read = new if x.read == "after" else S
        outputs[t] = x.scale * (read * q[:, t, :, :, None]).sum(-2)
        S = new
    return (torch.stack(outputs, 1) if T else torch.zeros_like(x.v)), S


def absolute(x: Arguments) -> Arguments:
    """The same with every term positive: what its outputs are is the scale of the rounding errors of x's."""
    return x.map(lambda n, y: y if n in DECAYS else y.abs())


class Scale:
    """The largest output and state of each head when nothing cancels."""

    def __init__(self, x: Arguments) -> None:
        o, S = loop(absolute(x))
        self.outputs = o.amax((1, 3), keepdim=True) if o.numel() else o.new_zeros(())
        self.state = S.amax((2, 3), keepdim=True)


def compare(
    what: str, case: object, x: Tensor, reference: Tensor, scale: Tensor | float, tolerance: float
) -> float:
    """The largest difference relative to `scale`.

    Raises:
        Counterexample: it exceeds the tolerance, or x is not finite, or has the wrong shape.
    """
    if x.shape != reference.shape:
        raise Counterexample(f"{what}: shape {list(x.shape)}, not {list(reference.shape)}, for {case}")
    if x.numel() == 0:
        return 0.0
    smallest = 1e-30  # where nothing was ever written, both sides are 0
    error = (x.double() - reference.double()).abs() / torch.as_tensor(scale).double().clamp(min=smallest)
    worst = float(error.max())
    if is_bad(worst, tolerance):
        bad = error.isnan().flatten().nonzero()
        flat = int(bad[0]) if len(bad) else int(error.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape)]
        raise Counterexample(
            f"{what}: {float(x[tuple(at)]):.9g} instead of {float(reference[tuple(at)]):.9g} at {at} "
            f"(relative error {worst:.1e}, accepted {tolerance:.0e}), for {case}"
        )
    return worst


class Expected(NamedTuple):
    """What a side must give: the value, by what an error is measured, and how large it may be then."""

    value: Tensor
    scale: Tensor | float
    tolerance: float


def agree(case: object, found: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> float:
    """The largest error of all that is found, by name.

    Raises:
        Counterexample: one is too large, or the two do not name the same things.
    """
    if found.keys() != expected.keys():
        sides = [", ".join(sorted(side)) for side in (found, expected)]
        raise Counterexample(f"one side gives {sides[0]}, the other {sides[1]}, for {case}")
    errors = [compare(name, case, x, *expected[name]) for name, x in found.items()]
    return max(errors, default=0.0)


Found = Callable[[Any], Mapping[str, Tensor]]
Expectation = Callable[[Any], Mapping[str, Expected]]


def drawn(
    cases: st.SearchStrategy[Any],
    quick: int,
    full: int,
    sides: tuple[Found, Expectation] | None = None,
) -> Check:
    """Property evidence: what the left side finds is what the right side expects, on drawn cases.

    `sides` are those of this evidence, if it runs other functions than the theorem's own.
    """

    def check(budget: Budget, tally: Tally) -> None:
        def one(case: Any) -> float:
            if sides is None:
                return agree(case, tally.left(case), tally.right(case))
            found, expected = sides[0](case), sides[1](case)
            tally.record(found, expected)
            return agree(case, found, expected)

        run_examples(budget, tally, cases, one, quick, full)

    return check


def both(what: str, run: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Outputs and final state, by name."""
    return {f"{what}, outputs": run[0], f"{what}, final state": run[1]}


def expect_both(
    what: str, run: tuple[Tensor, Tensor], scale: Scale, dtype: torch.dtype
) -> dict[str, Expected]:
    """Outputs to the tolerance of a dtype, the final state to that of the dtype in which it accumulates."""
    wide = torch.promote_types(dtype, torch.float32)
    return {
        f"{what}, outputs": Expected(run[0], scale.outputs, TOLERANCE[dtype]),
        f"{what}, final state": Expected(run[1], scale.state, TOLERANCE[wide]),
    }


@functools.lru_cache(maxsize=512)
def looped(case: Case) -> tuple[tuple[Tensor, Tensor], Scale]:
    """What the plain loop gives for a case, and its scale."""
    x = arguments(case)
    return loop(x), Scale(x)
