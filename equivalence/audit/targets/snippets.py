"""Ten lines that show a difference, with torch and the target alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..subject import Case
from .adapter import Adapter, Argument, State, dims, groups, letters
from .load import importing

DIFFERENCE = "print(float((found - expected).abs().max() / expected.abs().max()))"
DETACHED = DIFFERENCE.replace("(found - expected)", "(found - expected).detach()").replace(
    "/ expected", "/ expected.detach()"
)


@dataclass(frozen=True)
class Calls:
    """What a snippet needs to know of a target.

    Attributes:
        setup: lines after which f computes sequences and g single tokens; both take inputs by name.
        inputs: the line that makes x, a dictionary of inputs, of so many rows and tokens.
        axes: in which dimension of each input its time is.
        output: the way to the outputs in the result r, and their dimension of time.
        state: what is handed on from the result r, as keyword arguments; None if there is no state.
        mask: the parameter of f that takes it, and what `mask` has to be for it.
        cu_seqlens: the parameter that takes it.
        alone: whether single tokens have a function of their own.
        step: of finite differences.
        one_way: the way to the outputs of single tokens, if another.
        device: an argument of what makes tensors, if they are not on the CPU.
    """

    setup: Sequence[str]
    inputs: str
    axes: Mapping[str, int]
    output: tuple[str, int]
    state: str | None
    mask: tuple[str, str] | None = None
    cu_seqlens: str | None = None
    alone: bool = True
    step: str = "1e-4"
    one_way: str | None = None
    device: str = ""

    def piece(self, i: str) -> str:
        """The inputs of piece i out of pieces of so many tokens."""
        return self.of_each(lambda axis: f"t.split(sizes, {axis})[{i}]")

    def of_each(self, made: Callable[[str], str]) -> str:
        """The inputs, each changed: an expression of t and its dimension of time."""
        axes = set(self.axes.values())
        axis = str(axes.pop()) if len(axes) == 1 else f"{dict(self.axes)}[k]"
        return f"{{k: {made(axis)} for k, t in x.items()}}"


def snippet(calls: Calls | None, case: Case, ends: str = "") -> str:
    """The lines, or none where they would not be few.

    Args:
        calls: how the target is called; None: not in a few lines.
        case: the one that failed.
        ends: of `decay_extremes`, a line that brings x there.
    """
    if calls is None:
        return ""
    body = _BODIES[case.property](calls, case, ends)
    if body is None:
        return ""
    return "\n".join([*calls.setup, calls.inputs, *body]) + "\n"


def _run(c: Calls) -> list[str] | None:
    if c.state is None:
        return None
    way, axis = c.output
    part = f"r{way}"
    if c.alone and c.one_way not in (None, way):
        part = f"r{way} if n > 1 else r{c.one_way}"
    one = "(f if n > 1 else g)" if c.alone else "f"
    return [
        "def run(x, sizes, state={}, ys=()):",
        "    for i, n in enumerate(sizes):",
        f"        r = {one}(**{c.piece('i')}, **state); state, ys = {c.state}, (*ys, {part})",
        f"    return torch.cat(ys, {axis})",
    ]


def _pieces(c: Calls, case: Case, ends: str) -> list[str] | None:
    run = _run(c)
    if run is None:
        return None
    way = c.output[0]
    return [*run, f"found, expected = run(x, {list(case.pieces)}), f(**x){way}", DIFFERENCE]


def _padding(c: Calls, case: Case, ends: str) -> list[str] | None:
    run = _run(c)
    if c.mask is None or set(c.axes.values()) != {1} or c.output[1] != 1:
        return None
    name, value = c.mask
    start, stop = case.padding
    T = case.pieces[0]
    ones = f"torch.ones({case.rows}, {T}, dtype=torch.bool{c.device})"
    masked = f"mask = {ones}; mask[0, {start}:{stop}] = False"
    rest = f"rest = [t for t in range({case.length}) if not {start} <= t < {stop}]"
    if len(case.pieces) > 1:
        if run is None:
            return None
        alone = [T - (stop - start), *case.pieces[1:]]
        return [
            *run,
            f"{masked}; {rest}",
            f"found = run(x, {list(case.pieces)}, {{{name!r}: {value}}})[:1, rest]; "
            f"expected = run({{k: t[:1, rest] for k, t in x.items()}}, {alone})",
            DIFFERENCE,
        ]
    way = c.output[0]
    return [
        masked,
        rest,
        f"found = f(**x, {name}={value}){way}[:1, rest]",
        f"expected = f(**{{k: t[:1, rest] for k, t in x.items()}}){way}",
        DIFFERENCE,
    ]


def _packed(c: Calls, case: Case, ends: str) -> list[str]:
    way, axis = c.output
    return [
        f"sizes = {list(case.sequences)}",
        f"found = f(**x, {c.cu_seqlens}=torch.tensor([0, *sizes]{c.device}).cumsum(0)){way}",
        f"expected = torch.cat([f(**{c.piece('i')}){way} for i in range(len(sizes))], {axis})",
        DIFFERENCE,
    ]


def _batch(c: Calls, case: Case, ends: str) -> list[str] | None:
    way = c.output[0]
    run = _run(c) if len(case.pieces) > 1 else []
    if run is None:
        return None
    called = (lambda x: f"run({x}, {list(case.pieces)})") if run else (lambda x: f"f(**{x}){way}")
    row = "{k: t[b : b + 1] for k, t in x.items()}"
    return [
        *run,
        f"found, expected = {called('x')}, torch.cat([{called(row)} for b in range({case.rows})])",
        DIFFERENCE,
    ]


def _interleaved(c: Calls, case: Case, ends: str) -> list[str] | None:
    way = c.output[0]
    first = f"y = {c.inputs.partition('x = ')[2]}"
    if len(case.pieces) < 2:
        return [first, f"expected = f(**x){way}; f(**y); found = f(**x){way}", DIFFERENCE]
    if c.state is None:
        return None
    cut = c.of_each(lambda axis: f"t.narrow({axis}, a, n)")
    n = case.pieces[0]
    one_way = (c.one_way or way) if c.alone else way
    one = f"{'g' if c.alone else 'f'}(**cut(x, {n}, 1), **{c.state}){one_way}"
    return [
        first,
        f"def cut(x, a, n): return {cut}",
        "def run(x, other):",
        f"    r = f(**cut(x, 0, {n})); other and f(**cut(other, 0, {n}))",
        f"    return {one}",
        "expected = run(x, None); found = run(x, y)",
        DIFFERENCE,
    ]


def _fp64(c: Calls, case: Case, ends: str) -> list[str]:
    way = c.output[0]
    return [
        f"found = f(**x){way}; print(found.dtype)",
        "# The same where float32, said or meant, is float64:",
        "torch.Tensor.float, torch.float32, torch.float = torch.Tensor.double, torch.float64, torch.float64",
        "torch.set_default_dtype(torch.float64)",
        f"expected = f(**x){way}; {DIFFERENCE}",
    ]


def _low_precision(c: Calls, case: Case, ends: str) -> list[str] | None:
    sizes = list(case.pieces) or [case.length]
    run = _run(c) if case.pieces else []
    if run is None:
        return None
    way = c.output[0]
    called = (lambda x: f"run({x}, {sizes})") if case.pieces else (lambda x: f"f(**{x}){way}")
    return [
        *run,
        *filter(None, [ends]),
        "low = {k: t.bfloat16() for k, t in x.items()}; high = {k: t.double() for k, t in low.items()}",
        f"found, expected = {called('low')}.double(), {called('high')}.double()",
        DIFFERENCE,
    ]


def _slopes(h: str) -> list[str]:
    return [
        "for k, t in x.items():",
        "    d = torch.randn_like(t.requires_grad_()); "
        "(grad,) = torch.autograd.grad(loss() + 0 * t.sum(), t)",
        f"    slope = (loss(**{{k: t + {h} * d}}) - loss(**{{k: t - {h} * d}})) / (2 * {h})",
        "    print(k, float(slope.detach()), float((grad * d).sum()))",
    ]


def _gradients(c: Calls, case: Case, ends: str) -> list[str]:
    return [f"loss = lambda **y: f(**{{**x, **y}}){c.output[0]}.square().sum()", *_slopes(c.step)]


def _state_gradients(c: Calls, case: Case, ends: str) -> list[str] | None:
    if c.state is None:
        return None
    if len(case.pieces) == 1:
        return [
            "def loss(**y):",
            "    r = f(**{**x, **y})",
            f"    return sum(s.square().sum() for s in torch.utils._pytree.tree_leaves({c.state}))",
            *_slopes(c.step),
        ]
    sizes = list(case.pieces)
    late = "g" if c.alone and sizes[1] == 1 else "f"
    way = (c.one_way or c.output[0]) if late == "g" else c.output[0]
    return [
        f"sizes = {sizes}; late = {c.piece('1')}; x = {c.piece('0')}",
        "def loss(**y):",
        f"    r = f(**{{**x, **y}}); return {late}(**late, **{c.state}){way}.square().sum()",
        *_slopes(c.step),
    ]


def _extremes(c: Calls, case: Case, ends: str) -> list[str] | None:
    way = c.output[0]
    run = _run(c) if c.alone else None
    expected = f"run(x, [1] * {case.length})" if run else f"f(**{{k: t.double() for k, t in x.items()}}){way}"
    return [
        f"{ends}; x = {{k: t.float().requires_grad_() for k, t in x.items()}}",
        *(run or []),
        f"found, expected = f(**x){way}, {expected}; {DETACHED}",
        "grads = torch.autograd.grad(found.square().sum(), list(x.values()), allow_unused=True); "
        "print([g is None or bool(g.isfinite().all()) for g in grads])",
    ]


_BODIES = {
    "decode": _pieces,
    "chunked_prefill": _pieces,
    "padding_left": _padding,
    "padding_right": _padding,
    "padding_inside": _padding,
    "packed": _packed,
    "batch": _batch,
    "interleaved": _interleaved,
    "fp64": _fp64,
    "low_precision": _low_precision,
    "gradients": _gradients,
    "state_gradients": _state_gradients,
    "decay_extremes": _extremes,
}


# ---------------------------------------------------------------- of kernels


def drawn(argument: Argument, sizes: Mapping[str, int]) -> str:
    """The expression that draws it."""
    n = f"normal({', '.join(map(str, dims(argument.shape, sizes)))})"
    if len(re.findall(r"\bx\b", argument.expression)) == 1:
        return re.sub(r"\bx\b", n, argument.expression)
    return f"(lambda x: {argument.expression})({n})"


def _way(at: Sequence[int | str]) -> str:
    return "".join(f"[{key!r}]" if isinstance(key, int) else f".{key}" for key in at)


def _handed(state: Sequence[State]) -> str | None:
    if not state or any(s.argument is None for s in state):
        return None
    given: dict[str, list[State]] = {}
    for s in state:
        given.setdefault(str(s.argument), []).append(s)
    said = []
    for name, parts in given.items():
        ways = [f"r{_way(s.at)}" for s in sorted(parts, key=lambda s: s.part or 0)]
        said.append(f"{name!r}: {ways[0] if parts[0].part is None else '(' + ', '.join(ways) + ',)'}")
    return "{" + ", ".join(said) + "}"


def _time(shape: str) -> int | None:
    """The dimension of time, None if it has others in it."""
    return next((i for i, g in enumerate(groups(shape)) if g == ["T"]), None)


def of_kernel(
    called: str,
    adapter: Adapter,
    step: tuple[str, Adapter] | None,
    case: Case,
    weights_seed: int,
    dtype: str,
) -> Calls | None:
    """How a kernel is called, in a few lines.

    Args:
        called: "package.module:name".
        adapter: of it.
        step: the same of the kernel for single tokens.
        case: for its sizes.
        weights_seed: of what is the same for all rows.
        dtype: what tensors are given in, "torch.float64".
    """
    if not called:
        return None
    sizes = adapter.all_sizes(case.rows, case.length)
    of_time = {n: a for n, a in adapter.arguments.items() if "B" in letters(a.shape)}
    axes = {n: _time(a.shape) for n, a in of_time.items()}
    output = _time(adapter.output.shape)
    if output is None or any(axis is None for axis in axes.values()):
        return None
    if step is not None and adapter.state and _handed(step[1].state) != _handed(adapter.state):
        if 1 in case.pieces:
            return None
        step = None
    line, name = importing(called)
    seen = {n: drawn(a, sizes) for n, a in adapter.arguments.items()}
    weights = "".join(f", {n}={seen[n]}" for n in adapter.arguments if n not in of_time)
    options = "".join(f", {n}={v!r}" for n, v in adapter.constants.items())
    imports = f"import functools, torch; {line}"
    made = f"f = functools.partial({name}{options}{weights})" if options or weights else f"f = {name}"
    if step is not None:
        step_line, step_name = importing(step[0])
        together = step_line.partition(" import ")[0] == line.partition(" import ")[0]
        imports += f", {step_name}" if together else f"; {step_line}"
        options = "".join(f", {n}={v!r}" for n, v in step[1].constants.items())
        weights = "".join(f", {n}=f.keywords[{n!r}]" for n in adapter.arguments if n not in of_time)
        made += f"; g = functools.partial({step_name}{options}{weights})"
    cast = "" if dtype == "torch.float64" else f".to({dtype})"
    cast += "" if adapter.device == "cpu" else f".to({adapter.device!r})"
    normal = f"normal = lambda *n: torch.randn(*n, dtype=torch.float64){cast}"
    setup = [imports, f"{normal}; torch.manual_seed({weights_seed}); {made}"]
    x = ", ".join(f"{n!r}: {seen[n]}" for n in of_time)
    state = _handed(step[1].state if step is not None and not adapter.state else adapter.state)
    mask = "mask" if adapter.mask_means == "token" else "~mask"
    return Calls(
        setup,
        f"torch.manual_seed({case.seed}); x = {{{x}}}",
        {n: axis for n, axis in axes.items() if axis is not None},
        (_way(adapter.output.at), output),
        state,
        None if adapter.mask is None else (adapter.mask, mask),
        adapter.cu_seqlens,
        step is not None,
        "1e-4" if dtype == "torch.float64" else "1e-2",
        one_way=None if step is None else _way(step[1].output.at),
        device="" if adapter.device == "cpu" else f", device={adapter.device!r}",
    )
