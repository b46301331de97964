"""The operator as torch sees it: `mixerzoo::recurrence` and its gradient, with fake and autograd.

Inside, a backend runs: torch (the forms in this folder), Triton or Numba. The gradient of the gradient
differentiates the torch formula, so that derivatives of every order exist with every backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from . import checks, delta, forms, gradients, numba_core, triton_core
from .choose import Problem, apart, choose_form, parallel_block, scan_block, walk_block
from .memory import new, reusing
from .order import READS
from .steps import ALL, Gradients, Saved, Steps, Wanted, width

CHUNK = 64
# The parallel form has the gradient of the chunk form: its own would need T×T weights again.
GRADIENT_KIND = {"recurrent": "recurrent", "chunk": "chunk", "parallel": "chunk", "scan": "scan"}


class Options(NamedTuple):
    scale: float
    read: str
    reverse: bool
    form: str
    backend: str
    schedule: str
    precision: str | None
    chunk_size: int | None
    save: bool = False  # whether forward keeps what a backend's gradient can use


class Operands(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    outer: Tensor | None
    log_decay_v: Tensor | None
    beta: Tensor | None
    erase_x: Tensor | None
    erase_y: Tensor | None
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    mask: Tensor | None = None

    @property
    def erases(self) -> bool:
        return self.beta is not None or self.erase_x is not None

    @property
    def floating(self) -> tuple[Tensor | None, ...]:
        """Those that have a gradient."""
        return self[:FLOATING]


FLOATING = 10
# Names of their gradients, of which that of the initial state has none.
GRADIENTS_OF = ("q", "k", "v", "la", "outer", "lb", "beta", "x", "y")


def accumulation_dtype(*xs: Tensor | None) -> torch.dtype:
    """At least float32, float64 if anything is."""
    wide = any(x is not None and x.dtype == torch.float64 for x in xs)
    return torch.float64 if wide else torch.float32


def state_shape(x: Operands) -> tuple[int, int, int, int]:
    n = x.v.shape[0] if x.cu_seqlens is None else x.cu_seqlens.shape[0] - 1
    return n, x.v.shape[2], x.k.shape[3], x.v.shape[3]


def _acc(x: Operands) -> torch.dtype:
    return accumulation_dtype(*x.floating)


def _wide(x: Operands) -> tuple[Tensor | None, ...]:
    """Those in float64, which make everything so."""
    return tuple(y for y in x.floating if y is not None and y.dtype == torch.float64)


def uses_triton(x: Operands, o: Options) -> bool:
    if o.backend != "auto":
        return o.backend == "triton"
    if x.erases and x.k.shape[3] > triton_core.most_keys(x.v, *_wide(x)):
        return False
    forms = ("auto", "chunk") if x.erases else ("auto", "chunk", "recurrent")
    return x.v.is_cuda and o.form in forms and triton_core.available(x.v)


# Heads with fewer keys or values leave a matrix unit nothing to do (as in triton_core/config.py), and as many
# numbers of states over all steps take longer than a call of a kernel.
NARROW, LONG = 16, 1 << 14


def uses_numba(x: Operands, o: Options) -> bool:
    """On the CPU, where a kernel may go step by step and keys are few, or torch would go step by step as
    well."""
    if o.backend != "auto":
        return o.backend == "numba"
    if x.erases or o.form != "auto" or o.chunk_size is not None or not numba_core.available(x.v):
        return False
    b, t, h, V = x.v.shape
    K = x.k.shape[3]
    long = b * t * h * K * V >= LONG and h * V >= NARROW
    return min(K, V) < NARROW and long and (K <= NARROW or form_of(x, o) in ("recurrent", "scan"))


@contextmanager
def _full_precision(device: torch.device, precision: str | None) -> Iterator[None]:
    """Matrix products in the dtype of their operands: no autocast, tf32 only where asked."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def split_resets(A: Tensor) -> tuple[Tensor, Tensor | None]:
    """A with 0 for -inf, and where it was -inf (None where a look at host memory shows that it nowhere was).

    exp(dt·A) is e^A to the power dt: with A = -inf, 0 for dt > 0 and 1 for dt = 0, which is no product."""
    resets = torch.isneginf(A)
    plain = type(A) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if plain and A.device.type == "cpu" and not bool(resets.any()):
        return A, None
    return A.masked_fill(resets, 0.0), resets


def _problem(x: Operands) -> Problem:
    b, t, h, V = x.v.shape
    if x.cu_seqlens is not None:
        t = max(1, t // (x.cu_seqlens.shape[0] - 1))
    key_vector = x.outer is not None or (x.log_decay is not None and x.log_decay.ndim == 4)
    return Problem(b, t, h, x.k.shape[3], V, key_vector, x.log_decay_v is not None, x.erases)


def _chunk(x: Operands) -> int:
    b, _, h, V = x.v.shape
    return delta.chunk_length(b * h, max(x.k.shape[3], V)) if x.erases else CHUNK


def form_of(x: Operands, o: Options) -> str:
    return choose_form(_problem(x), o.chunk_size or _chunk(x)) if o.form == "auto" else o.form


def _block(x: Operands, o: Options, form: str, gradient: bool = False) -> int:
    """Steps that a form takes at a time, or its gradient."""
    if o.chunk_size is not None:
        return o.chunk_size
    if form == "scan":
        return scan_block(_problem(x), gradient)
    blocks = {"parallel": parallel_block, "recurrent": walk_block}
    return blocks[form](_problem(x)) if form in blocks else _chunk(x)


def _every(x: Operands, o: Options) -> int:
    """Steps between the states that torch's forward leaves for the gradient; 0 where it leaves none, as the
    gradient's blocks are no parts of its own."""
    form = form_of(x, o) if o.save else ""
    if form not in (("chunk",) if x.erases else ("chunk", "recurrent", "scan")):
        return 0
    K, size = x.k.shape[3], _block(x, o, form)
    if form == "chunk":
        size = (delta if x.erases else forms).together(width(x), size)
    return apart(size, K, 1 if x.erases else 2)


def _states_shape(x: Operands, every: int) -> tuple[int, ...]:
    """Of the states after every so many steps, one sequence after the other."""
    packed, (b, h, k, v) = x.cu_seqlens is not None, state_shape(x)
    # That after the last step is no one's start; packed sequences may end anywhere.
    n = (x.v.shape[1] if packed else max(0, x.v.shape[1] - 1)) // every
    return n, 1 if packed else b, h, k, v


def saved_shape(x: Operands, every: int) -> tuple[int, ...]:
    """Of what forward leaves for the gradient: states, and where steps erase, in one row with these, what
    solves the systems."""
    if not every:
        return (0,)
    states = _states_shape(x, every)
    return (math.prod(states) + x.v.numel(),) if x.erases else states


def _per_segment(
    saved: Tensor | None, x: Operands, every: int, segments: list[tuple[int, int]]
) -> list[Saved | None]:
    if saved is None:
        return [None for _ in segments]
    solution: Tensor | None = None
    if x.erases:
        shape = _states_shape(x, every)
        saved, solution = saved.split([math.prod(shape), x.v.numel()])
        saved, solution = saved.view(shape), solution.view(x.v.shape)
    many = [max(0, stop - start - 1) // every for start, stop in segments]
    return [
        Saved(every, states, None if solution is None else solution[:, start:stop])
        for states, (start, stop) in zip(saved[: sum(many)].split(many), segments, strict=True)
    ]


def _without_resets(x: Operands) -> tuple[Operands, Tensor | None]:
    if x.outer is None:
        return x, None
    outer, resets = split_resets(x.outer)
    return x._replace(outer=outer), resets


def _steps(
    x: Operands,
    o: Options,
    start: int,
    stop: int,
    dtype: torch.dtype,
    resets: Tensor | None,
    out: Tensor | None = None,
    saved: Saved | None = None,
) -> Steps:
    def cut(y: Tensor | None, constant: int) -> Tensor | None:
        return y if y is None or y.ndim == constant else y[:, start:stop]

    return Steps(
        x.q[:, start:stop],
        x.k[:, start:stop],
        x.v[:, start:stop],
        cut(x.log_decay, 1),
        x.outer,
        cut(x.log_decay_v, 2),
        beta=cut(x.beta, 0),
        x=cut(x.erase_x, 0),
        y=cut(x.erase_y, 0),
        scale=o.scale,
        reverse=o.reverse,
        dtype=dtype,
        resets=resets,
        out=None if out is None else out[:, start:stop],
        saved=saved,
        apart=form_of(x, o) == "scan",
    )


def _segments(x: Operands) -> list[tuple[int, int]]:
    if x.cu_seqlens is None:
        return [(0, x.v.shape[1])]
    offsets = x.cu_seqlens.tolist()
    checks.seqlen_values(offsets, x.v.shape[1])
    return list(pairwise(offsets))


def _initial(x: Operands, n: int, dtype: torch.dtype) -> Tensor:
    if x.initial_state is None:
        b, h, k, v = state_shape(x)
        return x.v.new_zeros(b if x.cu_seqlens is None else 1, h, k, v, dtype=dtype)
    s = x.initial_state if x.cu_seqlens is None else x.initial_state[n : n + 1]
    return s.to(dtype)


def _where(mask: Tensor, x: Tensor) -> Tensor:
    return torch.where(mask.reshape(*mask.shape, *(1 for _ in x.shape[2:])), x, torch.zeros_like(x))


def apply_mask(x: Operands) -> Operands:
    """Masked steps write nothing and do not decay; whatever padding holds (NaN included) is dropped."""
    if x.mask is None:
        return x
    la, lb = x.log_decay, x.log_decay_v
    if la is not None:
        la = _where(x.mask, la.expand(*x.mask.shape, *la.shape) if la.ndim == 1 else la)
    if lb is not None:
        lb = _where(x.mask, lb.expand(*x.mask.shape, *lb.shape) if lb.ndim == 2 else lb)
    beta, ex, ey = (None if y is None else _where(x.mask, y) for y in (x.beta, x.erase_x, x.erase_y))
    k, v = _where(x.mask, x.k), _where(x.mask, x.v)
    return x._replace(k=k, v=v, log_decay=la, log_decay_v=lb, beta=beta, erase_x=ex, erase_y=ey, mask=None)


def unmask_gradients(g: Gradients, x: Operands) -> Gradients:
    """Gradients of the operands of x from those of apply_mask(x)."""
    if x.mask is None:
        return g
    la, lb = g.la, g.lb
    if la is not None and x.log_decay is not None:
        la = _where(x.mask, la)
        la = la.sum((0, 1)) if x.log_decay.ndim == 1 else la
    if lb is not None and x.log_decay_v is not None:
        lb = _where(x.mask, lb)
        lb = lb.sum((0, 1)) if x.log_decay_v.ndim == 2 else lb
    others = ("k", "v", "beta", "x", "y")
    kept = {n: None if y is None else _where(x.mask, y) for n in others for y in (getattr(g, n),)}
    return g._replace(**kept, la=la, lb=lb)


def torch_forward(x: Operands, o: Options) -> tuple[Tensor, Tensor, Tensor | None]:
    """Outputs, final states and, where `save` asks for them, states that the gradient can start from."""
    dtype, order = _acc(x), READS[o.read]
    x = apply_mask(x)
    form = form_of(x, o)
    run = (delta.FORMS if x.erases else forms.FORMS)[form]
    x, resets = _without_resets(x)
    out, states, segments = new(x.v, *x.v.shape), [], _segments(x)
    every = _every(x, o)
    kept = new(x.v, *saved_shape(x, every), dtype=dtype) if every else None
    saved = _per_segment(kept, x, every, segments)
    with _full_precision(x.v.device, o.precision):
        for n, (start, stop) in enumerate(segments):
            state = _initial(x, n, dtype)
            if stop > start:
                steps = _steps(x, o, start, stop, dtype, resets, out, saved[n])
                with reusing():
                    whole, state = run(steps, state, order, _block(x, o, form))
                for piece in whole:  # of a form that knows no blocks
                    steps.keep(0, piece)
            states.append(state)
    state = states[0] if len(states) == 1 else torch.cat(states)
    return out, state.contiguous(), kept


def torch_backward(
    do: Tensor,
    dstate: Tensor,
    x: Operands,
    o: Options,
    kept: Tensor | None = None,
    reuse: bool = True,
    wanted: Wanted = ALL,
) -> tuple[Gradients, Tensor]:
    """Gradients of the operands and of the initial state, all in the accumulation dtype; from the states that
    forward kept, or after a sweep for them. Those that are not wanted may be None. To be differentiated
    itself, it may not reuse memory."""
    dtype, order = _acc(x), READS[o.read]
    given, x = x, apply_mask(x)
    kind = GRADIENT_KIND[form_of(x, o)]
    block = (delta.GRADIENTS if x.erases else gradients.GRADIENTS)[kind]
    carry = delta.carry if x.erases else gradients.CARRIES[kind]
    x, resets = _without_resets(x)
    size = _block(x, o, kind, True)
    found: list[Gradients] = []
    states, segments = [], _segments(x)
    saved = _per_segment(kept, x, 0 if kept is None else _every(x, o), segments)
    with _full_precision(x.v.device, o.precision):
        do, dstate = do.to(dtype), dstate.to(dtype)
        for n, (start, stop) in enumerate(segments):
            G = dstate if x.cu_seqlens is None else dstate[n : n + 1]
            if stop > start:
                steps = _steps(x, o, start, stop, dtype, resets, saved=saved[n])
                S = _initial(x, n, dtype)
                with reusing(reuse):
                    if x.erases and kind == "chunk":
                        g, G = delta.vjp(steps, S, do[:, start:stop], G, order, size, saved[n])
                    else:
                        g, G = gradients.vjp(
                            steps, S, do[:, start:stop], G, order, size, block, carry, saved[n], wanted
                        )
                found.append(g)
            states.append(G)
    state = states[0] if len(states) == 1 else torch.cat(states)
    if not found:
        zeros = (None if y is None else torch.zeros_like(y, dtype=dtype) for y in given.floating[:-1])
        q, k, v, la, outer, lb, beta, ex, ey = zeros
        return Gradients(q, k, v, la, lb, beta, ex, ey, outer), state
    # Sequences lie in memory order here, whichever way time runs inside each.
    everything = Steps(
        x.q, x.k, x.v, x.log_decay, x.outer, x.log_decay_v, beta=x.beta, x=x.erase_x, y=x.erase_y
    )
    return unmask_gradients(found[0] if len(found) == 1 else everything.join(found), given), state


# ------------------------------------------------------------------ registration

# Spelled with Optional: the schema of an operator is inferred from the annotations.


def _recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Optional[Tensor],
    outer: Optional[Tensor],
    log_decay_v: Optional[Tensor],
    beta: Optional[Tensor],
    erase_x: Optional[Tensor],
    erase_y: Optional[Tensor],
    initial_state: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    mask: Optional[Tensor],
    scale: float,
    read: str,
    reverse: bool,
    form: str,
    backend: str,
    schedule: str,
    precision: Optional[str],
    chunk_size: Optional[int],
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x = Operands(
        q, k, v, log_decay, outer, log_decay_v, beta, erase_x, erase_y, initial_state, cu_seqlens, mask
    )
    o = Options(scale, read, reverse, form, backend, schedule, precision, chunk_size, save)
    on_triton = uses_triton(x, o)
    on_numba = not on_triton and uses_numba(x, o)
    if on_numba:
        checks.log_values("log_decay.A", outer)  # its kernels look at the others on the way
    elif checks.always_checking() or (checks.checking(v) and not on_triton):
        _check_values(x)
    saved = None
    if on_triton:
        out, state, saved = triton_core.forward(*_for_triton(x), **_triton_options(o), save=save)
    elif on_numba:
        out, state, saved, legal = numba_core.forward(*_for_numba(x), **_numba_options(o), save=save)
        out = out.to(v.dtype)
        if not legal:
            _check_values(x)
    else:
        out, state, saved = torch_forward(x, o)
    # An operator's results may not share memory with its arguments (T = 0 hands the state through).
    if initial_state is not None and state.data_ptr() == initial_state.data_ptr():
        state = state.clone()
    return out, state, v.new_empty(0, dtype=state.dtype) if saved is None else saved


def _check_values(x: Operands) -> None:
    seen = apply_mask(x)
    if x.outer is None:
        checks.log_values("log_decay", seen.log_decay)
    elif seen.log_decay is not None:
        checks.outer_values(seen.log_decay, x.outer)
    checks.log_values("log_decay_v", seen.log_decay_v)


def _for_triton(x: Operands) -> Operands:
    """The kernels multiply: an A so low that any dt but 0 is a reset, and 0 none."""
    return x if x.outer is None else x._replace(outer=x.outer.to(_acc(x)).clamp_min(-1e30))


def _triton_options(o: Options) -> dict[str, Any]:
    return {
        "scale": o.scale,
        "read": o.read,
        "reverse": o.reverse,
        "schedule": o.schedule,
        "precision": o.precision,
        "chunk_size": o.chunk_size,
        "regime": None if o.form == "auto" else o.form,
    }


def _for_numba(x: Operands) -> tuple[Any, ...]:
    """Its kernels know no mask, and take offsets as numbers."""
    y = apply_mask(x)
    offsets = None
    if x.cu_seqlens is not None:
        offsets = x.cu_seqlens.tolist()
        checks.seqlen_values(offsets, x.v.shape[1])
    return y.q, y.k, y.v, y.log_decay, y.outer, y.log_decay_v, y.initial_state, offsets


def _numba_options(o: Options) -> dict[str, Any]:
    return {"scale": o.scale, "read": o.read, "reverse": o.reverse}


def _numba_backward(
    do: Tensor | None, dstate: Tensor | None, saved: Tensor, x: Operands, o: Options
) -> tuple[Tensor | None, ...]:
    kept = saved if saved.numel() else None
    do = _cotangents(x, do, dstate)[0]
    q, k, v, la, outer, lb, state = numba_core.backward(do, dstate, kept, *_for_numba(x), **_numba_options(o))
    return _flat(unmask_gradients(Gradients(q, k, v, la, lb, outer=outer), x), state)


def _fake_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Optional[Tensor],
    outer: Optional[Tensor],
    log_decay_v: Optional[Tensor],
    beta: Optional[Tensor],
    erase_x: Optional[Tensor],
    erase_y: Optional[Tensor],
    initial_state: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    mask: Optional[Tensor],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    x = Operands(
        q, k, v, log_decay, outer, log_decay_v, beta, erase_x, erase_y, initial_state, cu_seqlens, mask
    )
    o = Options(*options)
    saved: tuple[int, ...] = (0,)
    if o.save and uses_triton(x, o):
        saved = triton_core.saved_shape(*x, **_triton_options(o))
    elif o.save and uses_numba(x, o):
        saved = numba_core.saved_shape(v.shape, k.shape[3], None if cu_seqlens is None else state_shape(x)[0])
    elif o.save:
        saved = saved_shape(x, _every(x, o))
    return v.new_empty(v.shape), v.new_empty(state_shape(x), dtype=_acc(x)), v.new_empty(saved, dtype=_acc(x))


# One gradient for each of the floating operands; an absent operand's is empty.
Ten = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _recurrence_backward(
    do: Optional[Tensor],
    dstate: Optional[Tensor],
    saved: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Optional[Tensor],
    outer: Optional[Tensor],
    log_decay_v: Optional[Tensor],
    beta: Optional[Tensor],
    erase_x: Optional[Tensor],
    erase_y: Optional[Tensor],
    initial_state: Optional[Tensor],
    cu_seqlens: Optional[Tensor],
    mask: Optional[Tensor],
    scale: float,
    read: str,
    reverse: bool,
    form: str,
    backend: str,
    schedule: str,
    precision: Optional[str],
    chunk_size: Optional[int],
    save: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = Operands(
        q, k, v, log_decay, outer, log_decay_v, beta, erase_x, erase_y, initial_state, cu_seqlens, mask
    )
    o = Options(scale, read, reverse, form, backend, schedule, precision, chunk_size, save)
    if uses_triton(x, o):
        kept = saved if saved.numel() else None
        grads = triton_core.backward(do, dstate, kept, *_for_triton(x), **_triton_options(o))
    elif uses_numba(x, o):
        grads = _numba_backward(do, dstate, saved, x, o)
    else:
        kept = saved if saved.numel() or saved.ndim > 1 else None
        found = torch_backward(*_cotangents(x, do, dstate), x, o, kept, wanted=_names(wanted))
        grads = _flat(*found)
    return tuple(  # type: ignore[return-value]
        _own(g.to(y.dtype), do, dstate) if w and y is not None and g is not None else v.new_empty(0)
        for w, y, g in zip(wanted, x.floating, grads, strict=True)
    )


def _own(g: Tensor, *arguments: Tensor | None) -> Tensor:
    g = g.contiguous()
    return g.clone() if any(a is not None and g.data_ptr() == a.data_ptr() for a in arguments) else g


def _cotangents(x: Operands, do: Tensor | None, dstate: Tensor | None) -> tuple[Tensor, Tensor]:
    """Those of o and of the final state, zeros for what nothing depends on."""
    zeros = x.v.new_zeros(())
    return (
        zeros.expand(x.v.shape) if do is None else do,
        zeros.expand(state_shape(x)) if dstate is None else dstate,
    )


def _flat(g: Gradients, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
    """In the order of Operands."""
    return *(getattr(g, name) for name in GRADIENTS_OF), dstate


def _names(wanted: Sequence[bool]) -> Wanted:
    return frozenset(name for name, w in zip(GRADIENTS_OF, wanted, strict=False) if w)


def _fake_backward(do: Tensor | None, dstate: Tensor | None, saved: Tensor, *args: Any) -> Ten:
    xs, wanted = args[:FLOATING], args[-1]
    return tuple(
        y.new_empty(y.shape) if w and y is not None else args[2].new_empty(0)
        for w, y in zip(wanted, xs, strict=True)
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    first_option = len(inputs) - len(Options._fields)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # zeros for an unused state would be written and read
    ctx.save_for_backward(output[2], *inputs[:first_option])
    ctx.options = inputs[first_option:]


def _differentiate(ctx: Any, do: Tensor | None, dstate: Tensor | None, _: Any) -> tuple[Any, ...]:
    saved, *operands = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:FLOATING]
    grads = backward_op(do, dstate, saved, *operands, *ctx.options, wanted)
    found = (g if w else None for w, g in zip(wanted, grads, strict=True))
    return (*found, *(None for _ in (*operands[FLOATING:], *Options._fields)))


def _remember_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    inputs, ctx.wanted = inputs[:-1], inputs[-1]
    first_option = len(inputs) - len(Options._fields)
    ctx.save_for_backward(*inputs[:first_option])
    ctx.options = inputs[first_option:]


def _differentiate_again(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    """The derivative of the gradient, by differentiating the torch formula for it."""
    tensors, o = ctx.saved_tensors, Options(*ctx.options)
    needed = ctx.needs_input_grad[: len(tensors)]
    and_again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh aliases: differentiation must stop at the arguments of this very call.
        args = [y.view_as(y) if n else y for y, n in zip(tensors, needed, strict=True)]
        do, dstate, _, *operands = args
        x = Operands(*operands)
        grads = _flat(
            *torch_backward(*_cotangents(x, do, dstate), x, o, reuse=False, wanted=_names(ctx.wanted))
        )
        pairs = [
            (g.to(y.dtype), c)
            for w, g, y, c in zip(ctx.wanted, grads, x.floating, cotangents, strict=True)
            if w and g is not None and y is not None and g.requires_grad
        ]
        sources = [y for y, n in zip(args, needed, strict=True) if n]
        found: Any = iter(())
        if pairs and sources:
            found = iter(
                torch.autograd.grad(
                    [g for g, _ in pairs],
                    sources,
                    [c for _, c in pairs],
                    create_graph=and_again,
                    allow_unused=True,
                )
            )
    grads_out = tuple(next(found, None) if n else None for n in needed)
    return (*grads_out, *(None for _ in (*Options._fields, ctx.wanted)))


def _register(name: str, run: Any, fake: Any, differentiate: Any, remember: Any) -> Any:
    """An operator of torch. (`torch.library.custom_op` would import the compiler at the first call.)"""
    full = f"mixerzoo::{name}"
    torch.library.define(full, torch.library.infer_schema(run, mutates_args=()))
    torch.library.impl(full, "CompositeExplicitAutograd", run)
    torch.library.register_fake(full, fake)
    torch.library.register_autograd(full, differentiate, setup_context=remember)
    return getattr(torch.ops.mixerzoo, name).default


recurrence_op = _register("recurrence", _recurrence, _fake_recurrence, _differentiate, _remember)
backward_op = _register(
    "recurrence_backward", _recurrence_backward, _fake_backward, _differentiate_again, _remember_gradient
)
