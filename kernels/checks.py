"""The one door: every argument of the operator is checked here, and nowhere else.

An error names the argument, what it was, and what is accepted. Shapes, dtypes and devices are
always checked. Values (log-decays that are positive or NaN, malformed cu_seqlens) are checked
whenever the tensor lies in host memory; on an accelerator that would force a synchronisation,
so there it happens only inside `check_values()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import numba_core, triton_core
from .order import READS

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Callers compute log-decays in floating point, and finite differences step around 0.
ROUNDING = 1e-4

_READS = tuple(READS)
_always = False


@contextmanager
def check_values(enabled: bool = True) -> Iterator[None]:
    """Check the values of log-decays and cu_seqlens on every device, at the price of a synchronisation.

    >>> with check_values():
    ...     pass
    """
    global _always
    previous, _always = _always, enabled
    try:
        yield
    finally:
        _always = previous


def shape(x: Tensor) -> str:
    return "[" + ", ".join(map(str, x.shape)) + "]"


def tensor(name: str, x: object, accepted: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is {type(x).__name__}; accepted: a tensor {accepted}")
    return x


def floating(name: str, x: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {x.dtype}; accepted: float64, float32, bfloat16 or float16")


def same_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}; accepted: the device of v, {device}")


def one_of(name: str, value: object, accepted: tuple[object, ...]) -> None:
    if value not in accepted:
        names = ", ".join(repr(a) for a in accepted)
        raise ValueError(f"{name} is {value!r}; accepted: {names}")


def shaped(name: str, x: object, device: torch.device, *accepted: tuple[str, tuple[int, ...]]) -> Tensor:
    """x is a floating tensor of one of the shapes, each given as (how it is written, sizes)."""
    x = tensor(name, x, " or ".join([written for written, _ in accepted]))
    floating(name, x)
    same_device(name, x, device)
    if not any(tuple(x.shape) == sizes for _, sizes in accepted):
        # Only here: a compiled graph with sizes left open cannot write them out.
        described = " or ".join([f"{written} = {list(sizes)}" for written, sizes in accepted])
        raise ValueError(f"{name} has shape {shape(x)}; accepted: {described}")
    return x


def operands(q: object, k: object, v: object, time: bool) -> None:
    """q, k and v agree in batch, time, dtype and device, and their heads divide v's."""
    layouts = ("[B, T, Hq, K]", "[B, T, Hk, K]", "[B, T, H, V]")
    if not time:
        layouts = ("[B, Hq, K]", "[B, Hk, K]", "[B, H, V]")
    suffix = "" if time else "_t"
    ndim = 4 if time else 3
    if isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor):
        alike = q.dtype == k.dtype == v.dtype and q.device == k.device == v.device and q.shape == k.shape
        fitting = v.ndim == ndim and v.shape[:-1] == q.shape[:-1] and v.dtype in FLOATS
        if alike and fitting and 0 not in (q.shape[-2], q.shape[-1], v.shape[-1]):
            return  # a token has no time for the rest
    named = {}
    for name, x, layout in zip(("q", "k", "v"), (q, k, v), layouts, strict=True):
        x = tensor(name + suffix, x, layout)
        floating(name + suffix, x)
        if x.ndim != ndim:
            raise ValueError(f"{name}{suffix} has shape {shape(x)}; accepted: {layout}, {ndim} dimensions")
        named[name] = x
    value = named["v"]
    for name in ("q", "k"):
        x = named[name]
        if x.dtype != value.dtype:
            raise TypeError(f"{name}{suffix} has dtype {x.dtype}; accepted: the dtype of v, {value.dtype}")
        same_device(name + suffix, x, value.device)
        lead = ndim - 2
        if x.shape[:lead] != value.shape[:lead]:
            expected = list(value.shape[:lead])
            raise ValueError(
                f"{name}{suffix} has shape {shape(x)}; accepted: the leading sizes of v, {expected}"
            )
        heads, of = x.shape[-2], value.shape[-2]
        if heads == 0 or of % heads:
            raise ValueError(f"{name}{suffix} has {heads} heads; accepted: a divisor of v's {of} heads")
    if named["q"].shape[-1] != named["k"].shape[-1]:
        raise ValueError(
            f"q{suffix} has key dimension {named['q'].shape[-1]}; accepted: that of k, {named['k'].shape[-1]}"
        )
    for name in ("k", "v"):
        if named[name].shape[-1] == 0:
            raise ValueError(f"{name}{suffix} has shape {shape(named[name])}; accepted: at least one channel")


def plain_token(
    q: Any,
    k: Any,
    v: Any,
    la: Any,
    A: Any,
    lb: Any,
    beta: Any,
    state: Any,
    scale: object,
    read: object,
    inplace: object,
) -> bool:
    """Whether the arguments of `step` are what they mostly are while decoding, and nothing is left to refuse:
    tensors in host memory, of one dtype that is the accumulation dtype, without gradients or autocast. False
    says nothing. What it takes counts: a token is a dozen calls of torch, each of a microsecond."""
    if _always or torch.is_autocast_enabled("cpu") or getattr(forward_ad, "_current_level", 0) >= 0:
        return False
    if not (type(q) is type(k) is type(v) is Tensor and v.ndim == k.ndim == 3):
        return False
    dtype, recorded = v.dtype, torch.is_grad_enabled()
    for x in (q, k, v, state, la, lb, beta, A):
        if x is None:
            continue
        if type(x) is not Tensor or x.dtype is not dtype or not x.is_cpu or (recorded and x.requires_grad):
            return False
    (B, H, V), (rows, heads, K) = v.shape, k.shape
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and q.shape == k.shape
        and rows == B
        and 0 not in (heads, K, V)
        and H % heads == 0
        and (state is None or state.shape == (B, H, K, V))
        and (la is None or la.shape == (B, H) or (A is None and la.shape in ((H,), (B, H, K))))
        and (A is None or A.shape == (H, K))
        and (lb is None or lb.shape in ((B, H, V), (H, V)))
        and (beta is None or (lb is None and beta.shape == (B, H)))
        and (inplace is False or (inplace is True and state is not None and state.is_contiguous()))
        and type(scale) is float
        and abs(scale) < 1e300
        and read in _READS
    )


def delta(
    beta: object,
    erase: object,
    log_decay_v: Tensor | None,
    v: Tensor,
    key_dim: int,
    shape_of_beta: tuple[str, tuple[int, ...]],
    suffix: str,
) -> None:
    """beta or erase alone, of v's sizes; neither with a decay over values."""
    if beta is None and erase is None:
        return
    name = f"beta{suffix}" if erase is None else f"erase{suffix}"
    for other, given in ((f"beta{suffix}", beta), (f"log_decay_v{suffix}", log_decay_v)):
        if other != name and given is not None:
            raise ValueError(f"{name} was given together with {other}; accepted: one of the two")
    if erase is None:
        shaped(name, beta, v.device, shape_of_beta)
        return
    layout = "[B, T, Hx, K]" if v.ndim == 4 else "[B, Hx, K]"
    accepted = f"a pair (x, y) of tensors {layout}"
    if not isinstance(erase, (tuple, list)) or len(erase) != 2:
        raise TypeError(f"{name} is {type(erase).__name__}; accepted: {accepted}")
    lead = tuple(v.shape[:-2])
    for part, given in zip(("x", "y"), erase, strict=True):
        written = f"{name}[{part}]"
        z = tensor(written, given, layout)
        floating(written, z)
        same_device(written, z, v.device)
        if z.dtype != v.dtype:
            raise TypeError(f"{written} has dtype {z.dtype}; accepted: the dtype of v, {v.dtype}")
        if z.ndim != v.ndim or tuple(z.shape[:-2]) != lead or z.shape[-1] != key_dim:
            raise ValueError(
                f"{written} has shape {shape(z)}; accepted: {layout}, with the leading sizes of v, "
                f"{list(lead)}, and the key dimension of k, {key_dim}"
            )
        if z.shape[-2] == 0 or v.shape[-2] % z.shape[-2]:
            raise ValueError(
                f"{written} has {z.shape[-2]} heads; accepted: a divisor of v's {v.shape[-2]} heads"
            )


def seqlens(cu_seqlens: object, v: Tensor) -> Tensor:
    accepted = "[N + 1], int32 or int64, with B = 1"
    x = tensor("cu_seqlens", cu_seqlens, accepted)
    if x.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens has dtype {x.dtype}; accepted: {accepted}")
    if x.ndim != 1 or x.shape[0] < 2:
        raise ValueError(f"cu_seqlens has shape {shape(x)}; accepted: {accepted}, N >= 1")
    same_device("cu_seqlens", x, v.device)
    if v.shape[0] != 1:
        raise ValueError(
            f"cu_seqlens was given with batch size {v.shape[0]}; accepted: packed sequences, B = 1"
        )
    return x


def seqlen_values(offsets: list[int], length: int) -> None:
    good = offsets[0] == 0 and offsets[-1] == length and all(a <= b for a, b in pairwise(offsets))
    if not good:
        shown = offsets if len(offsets) <= 12 else [*offsets[:6], "...", *offsets[-5:]]
        raise ValueError(f"cu_seqlens is {shown}; accepted: offsets that rise from 0 to T = {length}")


def valid_mask(name: str, mask: object, sizes: tuple[int, ...], written: str, device: torch.device) -> Tensor:
    x = tensor(name, mask, f"{written} = {list(sizes)}, bool")
    if x.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; accepted: bool, True where a step counts")
    if tuple(x.shape) != sizes:
        raise ValueError(f"{name} has shape {shape(x)}; accepted: {written} = {list(sizes)}")
    same_device(name, x, device)
    return x


def checking(x: Tensor) -> bool:
    """Whether reading the values of x is free of synchronisation, or was asked for."""
    return not torch.compiler.is_compiling() and (_always or x.device.type == "cpu")


def always_checking() -> bool:
    return _always and not torch.compiler.is_compiling()


def log_values(name: str, x: Tensor | None) -> None:
    """No log-decay is positive or NaN."""
    if x is None or x.numel() == 0 or not checking(x):
        return
    top = float(x.detach().amax())
    if not top <= ROUNDING:  # also true of NaN
        raise ValueError(f"{name} contains {top:.6g}; accepted: natural logs of decays, in [-inf, 0]")


def outer_values(dt: Tensor, A: Tensor, name: str = "log_decay") -> None:
    """dt is finite and not negative, A is not positive (both but for rounding)."""
    log_values(f"{name}.A", A)
    if not dt.numel() or not checking(dt):
        return
    least, most = (float(y) for y in torch.aminmax(dt.detach()))
    if not (least >= -ROUNDING and most < math.inf):
        bad = most if least >= -ROUNDING else least
        raise ValueError(f"{name}.dt contains {bad:.6g}; accepted: finite and not negative")
    # What counts as rounding of dt depends on what it is multiplied with.
    if least < 0 and A.numel() and least * float(A.detach().amin()) > 1e-2:
        raise ValueError(
            f"{name}.dt contains {least:.6g} beside an A of {float(A.detach().amin()):.6g}; "
            "accepted: finite and not negative"
        )


def reverse_mode(*xs: Tensor | None) -> None:
    """Forward-mode derivatives do not exist here, and would come out as 0 without a word."""
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", 0) < 0:
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in xs):
        raise NotImplementedError(
            "an operand carries a forward-mode tangent (torch.func.jvp, torch.autograd.forward_ad); "
            "accepted: reverse-mode differentiation"
        )


def writable_state(state: Tensor | None, dtype: torch.dtype, needs_grad: bool) -> None:
    """The new state can be written into the given one."""
    if state is None:
        raise ValueError("state is None with inplace=True; accepted: the tensor [B, H, K, V] to write to")
    if state.dtype != dtype:
        raise TypeError(
            f"state has dtype {state.dtype} with inplace=True; accepted: the accumulation dtype, {dtype}"
        )
    if any(step == 0 and n > 1 for step, n in zip(state.stride(), state.shape, strict=True)):
        raise ValueError(
            f"state has strides {list(state.stride())} with inplace=True; accepted: a tensor whose elements "
            "do not share memory (not an expanded one)"
        )
    if needs_grad:
        raise ValueError(
            "inplace is True where a gradient is needed; accepted: False, or a call under torch.no_grad()"
        )


def number(name: str, x: object) -> None:
    if isinstance(x, bool) or not isinstance(x, (int, float)):
        raise TypeError(f"{name} is {x!r}; accepted: a number")
    if not abs(x) < 1e300:
        raise ValueError(f"{name} is {x!r}; accepted: a finite number")


def flag(name: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"{name} is {x!r}; accepted: True or False")


def chunk_size(x: object) -> None:
    if x is None:
        return
    if isinstance(x, bool) or not isinstance(x, int):
        raise TypeError(f"chunk_size is {x!r}; accepted: None or a whole number from 1")
    if not 1 <= x < 1 << 62:
        raise ValueError(f"chunk_size is {x}; accepted: None or a whole number from 1")


def backend(name: str, form: str, v: Tensor, erased: int = 0) -> None:
    """The chosen backend can run here, and has the chosen form. erased: keys of a head, if it erases."""
    if name == "numba":
        numba(form, v, erased)
    if name != "triton":
        return
    if erased > (most := triton_core.most_keys(v)):
        raise ValueError(
            f"k has {erased} channels with backend 'triton', beta or erase and {v.dtype}; accepted: at most "
            f"{most}"
        )
    if erased and form not in ("auto", "chunk"):
        raise ValueError(
            f"form is {form!r} with backend 'triton' and beta or erase; accepted: 'auto' or 'chunk'"
        )
    if form not in ("auto", "chunk", "recurrent"):
        raise ValueError(f"form is {form!r} with backend 'triton'; accepted: 'auto', 'chunk' or 'recurrent'")
    if not triton_core.available(v):
        raise ValueError(
            f"backend is 'triton' with tensors on {v.device}; accepted: tensors on a GPU with triton "
            "installed, or any tensors under Triton's interpreter (TRITON_INTERPRET=1)"
        )


def numba(form: str, v: Tensor, erased: int) -> None:
    """Numba's kernels can run here and have the chosen form."""
    if erased:
        raise ValueError(
            "backend is 'numba' with beta or erase, which couple a step's keys; accepted: 'auto' or 'torch'"
        )
    if form not in ("auto", "recurrent"):
        raise ValueError(f"form is {form!r} with backend 'numba'; accepted: 'auto' or 'recurrent'")
    if v.device.type != "cpu":
        raise ValueError(f"backend is 'numba' with tensors on {v.device}; accepted: tensors on the CPU")
    if not numba_core.installed():
        raise ValueError(
            "backend is 'numba' where Numba is not installed, or NUMBA_DISABLE_JIT is set; accepted: 'auto', "
            "'torch', or this after `pip install mixerzoo[numba]`"
        )
