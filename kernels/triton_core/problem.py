"""One call's arguments, with what every launch derives from them: sizes, strides, dtypes, scratch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .config import INTERPRETER, Target, accumulation

NONE, SCALAR, VECTOR, OUTER = 0, 1, 2, 3  # as in decay.py
DELTA, GENERAL = 1, 2  # as in delta.py
TL = {
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}
# (kernel, grid, arguments, a plan with warps and stages)
Run = Callable[[Any, Any, dict[str, Any], Any], None]


@functools.cache
def _card(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        arch = properties.gcnArchName.split(":")[0]
        return Target("hip", arch, properties.warp_size, properties.multi_processor_count)
    return Target("cuda", properties.major * 10 + properties.minor, 32, properties.multi_processor_count)


def target_of(x: Tensor) -> Target:
    """The target for which kernels on this tensor are compiled."""
    if not x.is_cuda:
        return INTERPRETER
    return _card(x.device.index if x.device.index is not None else torch.cuda.current_device())


def launch(kernel: Any, grid: int | tuple[int, ...], arguments: dict[str, Any], plan: Any) -> None:
    """Launch on the device of the tensors. aot.py puts its own recorder in this place."""
    device = arguments["k"].device
    grid = grid if isinstance(grid, tuple) else (grid,)
    if len(grid) > 1 and grid[1] > 65535:
        raise ValueError(f"v has {grid[1]} heads; accepted by the Triton kernels: at most 65535")
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](**arguments, num_warps=plan.warps, num_stages=plan.stages)


class Problem:
    """The arguments and options of one call.

    q [B, T, Hq, K], k [B, T, Hk, K], v [B, T, H, V]; log_decay None, [H], [B, T, H] or [B, T, H, K], or, with
    outer [H, K], the dt [B, T, H] of log-decays dt * outer; log_decay_v None, [H, V] or [B, T, H, V];
    beta None or [B, T, H]; erase_x, erase_y None or [B, T, Hx, K] and [B, T, Hy, K]; initial_state
    [N, H, K, V]; cu_seqlens [N + 1]; mask [B, T]; of a backward pass, do like v and dstate like
    initial_state. target, run: for what to compile and how to launch (aot.py puts its own there)."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        outer: Tensor | None,
        log_decay_v: Tensor | None,
        beta: Tensor | None,
        erase_x: Tensor | None,
        erase_y: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        mask: Tensor | None = None,
        *,
        scale: float,
        read: str,
        reverse: bool,
        schedule: str,
        precision: str | None,
        chunk_size: int | None,
        target: Target | None = None,
        run: Run | None = None,
        do: Tensor | None = None,
        dstate: Tensor | None = None,
    ):
        self.B, self.T, self.H, self.V = v.shape
        self.K = q.shape[-1]
        self.q, self.k, self.v, self.outer = q, k, v, outer
        self.log_decay, self.log_decay_v, self.initial_state = log_decay, log_decay_v, initial_state
        self.beta, self.x, self.y = beta, erase_x, erase_y
        self.erase = NONE if beta is None and erase_x is None else DELTA if erase_x is None else GENERAL
        self.cu_seqlens, self.mask = cu_seqlens, mask
        self.do, self.dstate = do, dstate
        self.N = self.B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.group_q, self.group_k = self.H // q.shape[2], self.H // k.shape[2]
        self.group_x, self.group_y = (1 if z is None else self.H // z.shape[2] for z in (erase_x, erase_y))
        self.scale, self.read, self.reverse = scale, read, reverse
        self.schedule, self.precision, self.chunk_size = schedule, precision, chunk_size
        self.target, self.run = target or target_of(v), run or launch
        floating = (q, k, v, log_decay, outer, log_decay_v, beta, erase_x, erase_y, initial_state)
        self.acc = accumulation(*floating)
        self.la, self.lb = log_decay, log_decay_v
        if log_decay is None:
            self.key = NONE
        elif outer is not None:
            self.key = OUTER
        elif log_decay.dim() == 4:
            self.key = VECTOR
        else:
            self.key = SCALAR
            self.la = log_decay.expand(self.B, self.T, self.H)  # constants have stride 0
        if log_decay_v is not None:
            self.lb = log_decay_v.expand(self.B, self.T, self.H, self.V)

    def slots(self, segment: int) -> int:
        """Storage slots of `segment` steps (see decay.slot_of)."""
        if self.cu_seqlens is None:
            return self.B * -(-self.T // segment)
        return self.T // segment + self.N

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.acc, device=self.v.device)

    def near(self, C: int) -> bool:
        """Whether every offset inside a tile of C steps, all heads and all columns fits 32 bits."""
        inputs = (self.q, self.k, self.v, self.la, self.lb, self.do, self.beta, self.x, self.y)
        extents = [
            sum(s * n for s, n in zip(x.stride()[1:], (C, *x.shape[2:]), strict=False))
            for x in inputs
            if x is not None
        ]
        states = [
            sum(s * n for s, n in zip(x.stride()[1:], x.shape[1:], strict=True))
            for x in (self.initial_state, self.dstate)
            if x is not None
        ]
        own = self.H * max(self.K, self.V) * C, self.H * self.K * self.V
        return max(*extents, *states, *own) < 2**31

    def common(self, steps: int) -> dict[str, Any]:
        """Arguments which every kernel takes; `steps` is the most that a tile holds."""
        return {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "la": self.la,
            "A": self.outer,
            "lb": self.lb,
            "beta": self.beta,
            "x": self.x,
            "y": self.y,
            "do": self.do,
            "mask": self.mask,
            "cu_seqlens": self.cu_seqlens,
            "scale": self.scale,
            "N": self.N,
            "T": self.T,
            "H": self.H,
            "tokens": self.B * self.T,
            "group_q": self.group_q,
            "group_k": self.group_k,
            "group_x": self.group_x,
            "group_y": self.group_y,
            **strides("sq", self.q, "bthd"),
            **strides("sk", self.k, "bthd"),
            **strides("sv", self.v, "bthd"),
            **strides("sa", self.la, "bthd"),
            **self._batch_stride(),
            **strides("se", self.beta, "bth"),
            **strides("sx", self.x, "bthd"),
            **strides("sy", self.y, "bthd"),
            **strides("sA", self.outer, "hd"),
            **strides("sb", self.lb, "bthd"),
            **strides("so", self.do, "bthd"),
            **strides("sm", self.mask, "bt"),
            "K": self.K,
            "V": self.V,
            "KEY": self.key,
            "VALUE": self.lb is not None,
            "ERASE": self.erase,
            "MASK": self.mask is not None,
            "STRICT": self.read == "before",
            "REVERSE": self.reverse,
            "VARLEN": self.cu_seqlens is not None,
            "ACC": TL[self.acc],
            "INDEX": tl.int32 if self.near(steps) else tl.int64,
        }

    def _batch_stride(self) -> dict[str, int]:
        """That of decays without keys is T * H: as `lab`, which makes no new kernel for a new length."""
        if self.la is None or self.key == VECTOR:
            return {"lab": 0}
        return {"sab": 0, "lab": self.la.stride(0)}

    def seed(self, state: Tensor | None) -> dict[str, Any]:
        """Arguments of a walk which starts from this state."""
        return {"initial": state, "INITIAL": state is not None, **strides("si", state, "bhkv")}


def strides(name: str, x: Tensor | None, axes: str) -> dict[str, int]:
    """{name + axis: stride}, 0 for axes or tensors which are not there."""
    steps = () if x is None else x.stride()
    return {name + a: (steps[i] if i < len(steps) else 0) for i, a in enumerate(axes)}


def only(kernel: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments which a kernel names."""
    return {name: arguments[name] for name in kernel.arg_names}


def total(partial: Tensor) -> Tensor:
    """The sum over blocks, which come first."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def gather(partial: Tensor, like: Tensor) -> Tensor:
    """[blocks, B, T, heads, K] of partial sums to the [B, T, Hq, K] of an input which heads share."""
    if partial.shape[0] == 1 and partial.shape[3] == like.shape[2]:
        return partial[0].to(like.dtype)
    B, T, H, K = like.shape
    return (
        partial.view(partial.shape[0], B, T, H, partial.shape[3] // max(H, 1), K).sum((0, 4)).to(like.dtype)
    )
