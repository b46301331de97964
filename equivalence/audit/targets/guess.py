"""An adapter from a kernel's signature: by the usual names of arguments, tried out in calls."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .adapter import DECAYS, Adapter, Argument, Output, State, letters, to_time_second
from .load import TargetError

# Names, what they hold, and the letters after batch, time and heads that they may have.
ROLES: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...] = (
    (("q", "query", "queries", "r", "receptance"), "normal", ("K",)),
    (("k", "key", "keys"), "unit", ("K",)),
    (("v", "value", "values"), "normal", ("V",)),
    (("g", "gk", "log_decay", "log_g", "log_f", "log_alpha", "log_w"), "log_decay", ("", "K")),
    (("decay", "gamma", "forget"), "decay", ("", "K")),
    (("alpha",), "decay", ("",)),
    (("beta",), "gate", ("", "K")),
)
STATES = ("initial_state", "h0", "s0", "state", "init_state", "initial", "S0")
RETURNING = ("output_final_state", "return_final_state", "return_state")
MASKS = {"mask": "token", "attention_mask": "token", "padding_mask": "padding", "key_padding_mask": "padding"}
OFFSETS = ("cu_seqlens", "cu_seq_lens", "offsets")
CHUNKS = ("chunk_size", "BT", "block_size")
CHUNK_SIZES = (4, 16, 64)
FIXED = (1, 64)  # a chunk that cannot be chosen
HEAD_FIRST = ("head_first",)
# Of distinct primes: a dimension of a result says which it is.
PROBE = {"B": 2, "T": 16, "H": 3, "K": 5, "V": 7}


def guess(function: Callable[..., Any], called: str) -> Adapter:
    """How a kernel is called, as far as names and a few calls tell.

    Raises:
        TargetError: naming an argument that is not known, or saying why every way of calling it failed.
    """
    parameters = inspect.signature(function).parameters
    roles, constants = _named(parameters, called)
    state = next((n for n in STATES if n in parameters), None)
    mask = next((n for n in MASKS if n in parameters), None)
    failures = []
    chunks = _chunks(parameters)
    for size, shapes, chunk in itertools.product(FIXED, _shapes(roles, parameters), chunks):
        arguments, layout = shapes
        given = {**constants, **chunk}
        sizes = {**PROBE, "T": 2 * max(size, 8, *chunk.values())}
        adapter = Adapter(arguments, Output(f"{layout} V"), (), given)
        try:
            found = _try(function, adapter, state, sizes)
        except Exception as e:
            failures.append(f"{_said(adapter)}: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
            continue
        if found is None:
            failures.append(f"{_said(adapter)}: its outputs are not causal in T, or not those of their heads")
            continue
        output, states = found
        fixed = max(size, *chunk.values(), 1)
        multiple = 1 if _takes(function, arguments, given, fixed + 1) else fixed
        arguments = _decays_as_found(function, arguments, output, given, sizes)
        return Adapter(
            arguments,
            output,
            states,
            given,
            mask=mask,
            mask_means=MASKS[mask] if mask else "token",
            cu_seqlens=next((n for n in OFFSETS if n in parameters), None),
            multiple=multiple,
            lengths=(3, 5, 9, 20) if fixed < 16 else (3, fixed + 1, 2 * fixed + 2),
            guessed=_said(Adapter(arguments, constants=given))
            + (f", state [{states[0].shape}] in {state}" if states else ", no state"),
        )
    raise TargetError(
        f"no way of calling {called} was found. Give an adapter; tried were, among {len(failures)}: "
        + "; ".join(failures[:2])
    )


def _said(adapter: Adapter) -> str:
    return ", ".join(
        [f"{n} [{a.shape}] {a.drawn}" for n, a in adapter.arguments.items()]
        + [f"{n} = {v}" for n, v in adapter.constants.items()]
    )


def _named(parameters: Any, called: str) -> tuple[dict[str, tuple[str, tuple[str, ...]]], dict[str, Any]]:
    """What each argument that has to be given holds, and constants."""
    roles: dict[str, tuple[str, tuple[str, ...]]] = {}
    constants: dict[str, Any] = {}
    known = {n: (drawn, ends) for names, drawn, ends in ROLES for n in names}
    others = (*STATES, *MASKS, *OFFSETS)
    for p in parameters.values():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        needed = p.default is p.empty
        if p.name.lower() in known and (needed or p.default is None):
            roles[p.name] = known[p.name.lower()]
        elif p.name in RETURNING:
            constants[p.name] = True
        elif p.name in HEAD_FIRST:
            constants[p.name] = False
        elif p.name == "scale" and needed:
            constants[p.name] = 1.0
        elif needed and p.name not in (*others, *CHUNKS):
            accepted = [n for names, _, _ in ROLES for n in names]
            raise TargetError(
                f"{called} needs {p.name!r}, which is not known; accepted: an adapter, or the names "
                f"{', '.join([*accepted, *STATES, *MASKS, *OFFSETS, *CHUNKS, *RETURNING, 'scale'])}"
            )
    decays = [n for n, (drawn, _) in roles.items() if drawn in DECAYS]
    if len(decays) > 1:
        raise TargetError(
            f"{called} takes {' and '.join(map(repr, decays))}, of which one at most would be a decay; "
            "accepted: an adapter that says what they are"
        )
    for role, names in (("queries", ROLES[0][0]), ("keys", ROLES[1][0]), ("values", ROLES[2][0])):
        if not any(n.lower() in names for n in roles):
            raise TargetError(
                f"{called} takes no {role}; accepted: an argument named {' or '.join(names)}, or an adapter"
            )
    return roles, constants


def _shapes(
    roles: dict[str, tuple[str, tuple[str, ...]]], parameters: Any
) -> Iterator[tuple[dict[str, Argument], str]]:
    """Every way to shape the arguments, time second first."""
    for layout in ("B T H", "B H T"):
        ways: list[list[tuple[str, Argument]]] = []
        for name, (drawn, ends) in roles.items():
            shaped = [(name, Argument(f"{layout} {end}".strip(), drawn)) for end in ends]
            if drawn in DECAYS:
                shaped.append((name, Argument("H", drawn)))
            ways.append(shaped)
        for chosen in itertools.product(*ways):
            yield dict(chosen), layout


def _chunks(parameters: Any) -> list[dict[str, Any]]:
    found = next((n for n in CHUNKS if n in parameters), None)
    return [{found: n} for n in CHUNK_SIZES] if found else [{}]


def _draw(arguments: dict[str, Argument], sizes: dict[str, int]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {n: a.draw(sizes, g).float() for n, a in arguments.items()}


def _results(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _try(
    function: Callable[..., Any], adapter: Adapter, state: str | None, sizes: dict[str, int]
) -> tuple[Output, tuple[State, ...]] | None:
    """Where outputs and state are; None if this cannot be the way."""
    x = _draw(dict(adapter.arguments), sizes)
    with torch.no_grad():
        result = function(**{n: t.clone() for n, t in x.items()}, **adapter.constants)
    parts = _results(result)
    way: tuple[int | str, ...] = (0,) if isinstance(result, (tuple, list)) else ()
    for layout in ("B T H V", "B H T V"):
        if tuple(parts[0].shape) != tuple(sizes[n] for n in layout.split()):
            continue
        y = to_time_second(parts[0], layout, sizes)
        if not bool(y.isfinite().all()) or not _in_its_place(function, adapter, x, y, layout, way, sizes):
            return None
        return Output(layout, way), _state(parts, state, sizes)
    return None


def _in_its_place(
    function: Callable[..., Any],
    adapter: Adapter,
    x: dict[str, Tensor],
    y: Tensor,
    layout: str,
    way: tuple[int | str, ...],
    sizes: dict[str, int],
) -> bool:
    """A change of the values at one time, in one head, shows there and later, and nowhere else."""
    values = next(n for n, a in adapter.arguments.items() if "V" in letters(a.shape))
    t, changed = sizes["T"] // 2, {n: z.clone() for n, z in x.items()}
    order = letters(adapter.arguments[values].shape)
    changed[values].select(order.index("T"), t).select(1, 0).add_(1.0)
    with torch.no_grad():
        parts = _results(function(**changed, **adapter.constants))
    moved = (to_time_second(parts[0], layout, sizes) != y).any(-1)
    return bool(moved[:, t + 1, 0].all() and not moved[:, :t].any() and not moved[:, :, 1:].any())


def _state(parts: list[Any], argument: str | None, sizes: dict[str, int]) -> tuple[State, ...]:
    named = {n: s for s, n in sizes.items()}
    for i, part in enumerate(parts[1:], 1):
        if isinstance(part, Tensor) and all(n in named for n in part.shape) and part.shape[0] == sizes["B"]:
            shape = " ".join(named[n] for n in part.shape)
            if sorted(shape.split()) == ["B", "H", "K", "V"]:
                return (State(shape, at=(i,), argument=argument),)
    return ()


def _decays_as_found(
    function: Callable[..., Any],
    arguments: dict[str, Argument],
    output: Output,
    constants: dict[str, Any],
    sizes: dict[str, int],
) -> dict[str, Argument]:
    """Logarithms or factors: where 0 forgets everything, it is a factor."""
    found = dict(arguments)
    for name, a in arguments.items():
        if a.drawn not in DECAYS:
            continue
        x = _draw(arguments, sizes)
        x[name] = torch.zeros_like(x[name])
        values = next(n for n, b in arguments.items() if "V" in letters(b.shape))
        other = {n: z.clone() for n, z in x.items()}
        order = letters(arguments[values].shape)
        other[values].select(order.index("T"), 0).add_(1.0)
        with torch.no_grad():
            first, second = (
                to_time_second(_results(function(**z, **constants))[0], output.shape, sizes)[:, -1]
                for z in (x, other)
            )
        if bool(first.isfinite().all() and second.isfinite().all()):
            found[name] = Argument(a.shape, "decay" if torch.equal(first, second) else "log_decay")
    return found


def _takes(
    function: Callable[..., Any], arguments: dict[str, Argument], constants: dict[str, Any], length: int
) -> bool:
    try:
        with torch.no_grad():
            function(**_draw(arguments, {**PROBE, "T": length}), **constants)
    except Exception:
        return False
    return True
