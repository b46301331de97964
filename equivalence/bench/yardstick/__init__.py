"""The elementwise regime in C++ (elementwise.cpp), compiled when a benchmark asks for it.

A yardstick, and no part of what runs: nothing outside the benchmark and its tests loads it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..bar import Missing

SOURCE = Path(__file__).with_name("elementwise.cpp")
OPTIONS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17", "-Wno-psabi")


def compilers() -> list[str]:
    """Those to try, best first."""
    named = os.environ.get("CXX")
    return [path for name in (named, "g++", "clang++", "c++") if name and (path := shutil.which(name))]


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled yardstick.

    Raises:
        Missing: no compiler is here, or none of them compiles it.
    """
    found = compilers()
    if not found:
        raise Missing("a C++ compiler (g++ or clang++ with OpenMP)")
    said = ""
    with tempfile.TemporaryDirectory() as folder:
        made = str(Path(folder) / f"{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so")
        for compiler in found:
            done = subprocess.run(
                [compiler, *OPTIONS, str(SOURCE), "-o", made], capture_output=True, text=True
            )
            if done.returncode == 0:
                return ctypes.CDLL(made)
            said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no message"
    raise Missing(f"a C++ compiler that compiles {SOURCE.name} ({said})")


def _call(name: str, *arguments: Tensor | int | None) -> None:
    def given(x: Tensor | int | None) -> object:
        if isinstance(x, Tensor):
            return ctypes.c_void_p(x.data_ptr())
        return ctypes.c_void_p(None) if x is None else ctypes.c_long(x)

    run = getattr(library(), name)
    run.restype = None
    run(*(given(x) for x in arguments), ctypes.c_int(torch.get_num_threads()))


def _dense(*xs: Tensor) -> tuple[Tensor, ...]:
    """In float32, without the batch of 1, contiguous."""
    width = library().width()
    if xs[0].shape[-1] % width:
        raise ValueError(f"the yardstick has {xs[0].shape[-1]} channels; accepted: a multiple of {width}")
    for x in xs:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise TypeError(f"the yardstick has {x.dtype} on {x.device}; accepted: float32 on the CPU")
    return tuple(x.detach().contiguous() for x in xs)


def _blocks(T: int) -> int:
    return -(-T // int(library().block()))


class Mamba(torch.autograd.Function):
    """y [T, D] and the final state [D, 16] of h = exp(dt A) h + dt B x, y = C h.

    dt, x [T, D]; A [D, 16]; B, C [T, 16]."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        operands = dt, A, B, C, x = _dense(dt, A, B, C, x)
        if A.shape[1] != 16:
            raise ValueError(f"the yardstick has states of {A.shape[1]}; accepted: 16")
        T, D = x.shape
        y, final = torch.empty_like(x), torch.empty_like(A)
        states = torch.empty(_blocks(T), 16, D) if any(ctx.needs_input_grad) else None  # type: ignore[attr-defined]
        _call("mamba_forward", *operands, y, final, states, T, D)
        ctx.save_for_backward(*operands, states)  # type: ignore[arg-type]
        return y, final

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *given: Tensor) -> tuple[Tensor, ...]:
        *operands, states = ctx.saved_tensors  # type: ignore[attr-defined]
        dy, dfinal = (g.contiguous() for g in given)
        T, D = dy.shape
        dt, A, B, C, x = (torch.empty_like(y) for y in operands)
        _call("mamba_backward", *operands, states, dy, dfinal, dt, A, B, C, x, T, D)
        return dt, A, B, C, x


class HGRN(torch.autograd.Function):
    """h [T, D] and its last row, h_t = exp(l_t) h_{t-1} + v_t."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, l: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        l, v = _dense(l, v)
        T, D = v.shape
        h, final = torch.empty_like(v), v.new_empty(D)
        states = torch.empty(_blocks(T), D) if any(ctx.needs_input_grad) else None  # type: ignore[attr-defined]
        _call("hgrn_forward", l, v, h, final, states, T, D)
        ctx.save_for_backward(l, v, states)  # type: ignore[arg-type]
        return h, final

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *given: Tensor) -> tuple[Tensor, ...]:
        l, v, states = ctx.saved_tensors  # type: ignore[attr-defined]
        dh, dfinal = (g.contiguous() for g in given)
        dl, dv = torch.empty_like(l), torch.empty_like(v)
        _call("hgrn_backward", l, v, states, dh, dfinal, dl, dv, *v.shape)
        return dl, dv


def mamba(dt: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """`Mamba`, differentiable once.

    Raises:
        Missing: no C++ compiler is here.
        TypeError, ValueError: dtypes other than float32, channels that do not fill vectors.
    """
    return Mamba.apply(dt, A, B, C, x)


def hgrn(l: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`HGRN`, differentiable once. Raises: as `mamba`."""
    return HGRN.apply(l, v)
