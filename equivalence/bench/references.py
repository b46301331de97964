"""The mixers' cores in transformers, as its models run them on a CPU, over ours on the same inputs."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import OuterDecay, numba_core, recurrence
from ...mixers import rwkv4
from ...mixers.base import MixerState, Tokens
from ...mixers.parts import ones
from ...mixers.sequences import stabilise
from .bar import Bar, Effort, Measured, Missing, forward, forward_and_backward, in_turns

LENGTH = 2048
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Core:
    """One core: inputs, how theirs and ours compute outputs of one size from them, and the bars."""

    name: str
    shape: str
    inputs: Callable[[int], Inputs]
    theirs: Callable[[Inputs], Tensor]
    ours: Callable[[Inputs], Tensor]
    forward: float
    both: float
    both_length: int = LENGTH


def _of(model: str, name: str) -> Any:
    """A function or class of transformers.

    Raises:
        Missing: it is not there.
    """
    try:
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        return getattr(module, name)
    except (ImportError, AttributeError) as e:
        raise Missing(f"transformers with {model}'s {name}") from e


def _normal(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed))


def _qkv(T: int, H: int, K: int, V: int) -> Inputs:
    return {
        "q": F.normalize(_normal(1, T, H, K), dim=-1),
        "k": F.normalize(_normal(1, T, H, K, seed=1), dim=-1),
        "v": _normal(1, T, H, V, seed=2),
    }


def _gates(T: int, *sizes: int) -> Tensor:
    return F.logsigmoid(_normal(1, T, *sizes, seed=3) + 3)


# ------------------------------------------------------------------ one by one


def lightning_theirs(x: Inputs) -> Tensor:
    """The layer with its projections, gate and norm taken out: q, k and v come in as they are."""
    T, H, D = x["q"].shape[1:]
    layer = _lightning(H, D)
    qkv = torch.stack([x["q"], x["k"], x["v"]], -2)  # [1, T, H, 3, D]
    return layer(qkv.flatten(2), None, None)[0].reshape(1, T, H, D)


@functools.lru_cache
def _lightning(heads: int, dim: int) -> Any:
    made = _of("minimax", "MiniMaxLightningAttention")
    config = importlib.import_module("transformers").MiniMaxConfig(
        hidden_size=heads * dim, num_attention_heads=heads, head_dim=dim, num_hidden_layers=2
    )
    layer = made(config, 0)
    same = torch.nn.Identity()
    layer.qkv_proj, layer.act_fn, layer.norm, layer.out_proj = same, same, same, same
    layer.output_gate = _One()
    return layer


class _One(torch.nn.Module):
    """What a sigmoid turns into 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((), 1e4)


def lightning_ours(x: Inputs) -> Tensor:
    slope = _lightning(*x["q"].shape[2:]).slope_rate.flatten()
    return recurrence(x["q"], x["k"], x["v"], -slope)[0]


def mamba2_inputs(T: int) -> Inputs:
    return {
        "x": _normal(1, T, 32, 64),
        "dt": F.softplus(_normal(1, T, 32, seed=1) - 2),
        "A": -torch.rand(32, generator=torch.Generator().manual_seed(2)) - 0.5,
        "B": _normal(1, T, 1, 128, seed=3),
        "C": _normal(1, T, 1, 128, seed=4),
    }


def mamba2_theirs(x: Inputs) -> Tensor:
    scan = _of("mamba2", "mamba2_chunk_scan")
    y = scan(x["x"], x["dt"], x["A"], x["B"], x["C"], chunk_size=256)
    return y[0] if isinstance(y, tuple) else y


def mamba2_ours(x: Inputs) -> Tensor:
    return recurrence(x["C"], x["B"], x["x"] * x["dt"][..., None], x["dt"] * x["A"])[0]


def gated_delta_inputs(T: int) -> Inputs:
    return _qkv(T, 8, 128, 128) | {"g": _gates(T, 8), "beta": _normal(1, T, 8, seed=4).sigmoid()}


def gated_delta_theirs(x: Inputs) -> Tensor:
    rule = _of("qwen3_next", "torch_chunk_gated_delta_rule")
    return rule(x["q"], x["k"], x["v"], g=x["g"], beta=x["beta"])[0]


def delta_ours(x: Inputs) -> Tensor:
    return recurrence(x["q"], x["k"], x["v"], x["g"], beta=x["beta"], scale=x["k"].shape[-1] ** -0.5)[0]


def kda_inputs(T: int) -> Inputs:
    return _qkv(T, 8, 128, 128) | {"g": _gates(T, 8, 128), "beta": _normal(1, T, 8, seed=4).sigmoid()}


def kda_theirs(x: Inputs) -> Tensor:
    rule = _of("kimi_linear", "chunk_kimi_delta_attention")
    return rule(x["q"], x["k"], x["v"], g=x["g"], beta=x["beta"])[0]


def mlstm_inputs(T: int) -> Inputs:
    return _qkv(T, 8, 64, 128) | {"i": _normal(1, T, 8, seed=5), "f": _normal(1, T, 8, seed=6) + 3}


def mlstm_theirs(x: Inputs) -> Tensor:
    run = _of("xlstm", "mlstm_chunkwise_native_autograd")
    q, k, v, i, f = (x[n].transpose(1, 2).contiguous() for n in ("q", "k", "v", "i", "f"))
    return run(q, k, v, i, f, chunk_size=64).transpose(1, 2)


def _tokens(x: Tensor) -> Tokens:
    return Tokens(torch.arange(x.shape[1])[None], None)


def mlstm_ours(x: Inputs) -> Tensor:
    """As the mixer does between its projections: the stabiliser, one call of the core, the division."""
    start = torch.full((1, x["i"].shape[-1]), -math.inf, dtype=torch.float64)
    s = stabilise(F.logsigmoid(x["f"]), x["i"], start, _tokens(x["i"]), constant=False)
    k = torch.exp(s.log_write)[..., None] * x["k"]
    v = torch.cat([x["v"], torch.ones_like(x["v"][..., :1])], -1)
    o = recurrence(x["q"], k, v, s.log_decay, scale=k.shape[-1] ** -0.5)[0]
    least = torch.exp((-s.m).clamp(-80, 80)).float()[..., None]
    return o[..., :-1] / (torch.maximum(o[..., -1:].abs(), least) + 1e-6)


def rwkv_inputs(T: int) -> Inputs:
    return {
        "decay": _normal(1024),
        "first": _normal(1024, seed=1),
        "k": _normal(1, T, 1024, seed=2),
        "v": _normal(1, T, 1024, seed=3),
    }


def rwkv_theirs(x: Inputs) -> Tensor:
    attend = _of("rwkv", "rwkv_linear_attention_cpu")
    return attend(x["decay"], x["first"], x["k"], x["v"])[0]


def _needs(backend: str) -> str:
    """The name of the backend.

    Raises:
        Missing: it is not installed.
    """
    if backend == "numba" and not numba_core.installed():
        raise Missing("numba")
    return backend


def rwkv_ours(x: Inputs, backend: str = "torch") -> Tensor:
    """As the mixer does between its projections."""
    k, width = x["k"], x["k"].shape[-1]
    start = torch.full((1, width), -math.inf, dtype=torch.float64)
    state = MixerState(torch.zeros(1, dtype=torch.int64), k.new_zeros(1, 1, 1, 2 * width), stabiliser=start)
    core = rwkv4.attend(k, x["v"], x["decay"].exp(), x["first"], state, _tokens(k))
    o, _ = recurrence(
        core.q,
        core.k,
        core.v,
        log_decay_v=core.log_decay_v,
        initial_state=core.initial,
        read=core.read,
        backend=_needs(backend),
    )
    return rwkv4.mean(o, *core.rest)


def rg_lru_inputs(T: int) -> Inputs:
    return {"x": _normal(1, T, 1024), "la": F.logsigmoid(_normal(1, T, 1024, seed=1) + 3)}


def rg_lru_theirs(x: Inputs) -> Tensor:
    scan = _of("recurrent_gemma", "RecurrentGemmaRglru")._rnn_scan
    never = torch.zeros(*x["x"].shape[:2], 1, dtype=torch.bool)
    return scan(None, x["x"], x["la"].exp(), never, None)[0]


def elementwise_ours(x: Inputs, backend: str = "torch") -> Tensor:
    v = x["x"][:, :, None]
    o, _ = recurrence(ones(v), ones(v), v, None, x["la"][:, :, None], backend=_needs(backend))
    return o[:, :, 0]


def mamba_inputs(T: int, channels: int = 1536) -> Inputs:
    return {
        "x": _normal(1, T, channels),
        "dt": F.softplus(_normal(1, T, channels, seed=1) - 2),
        "A": -torch.arange(1.0, 17.0).repeat(channels, 1),
        "B": _normal(1, T, 16, seed=3),
        "C": _normal(1, T, 16, seed=4),
    }


def mamba_theirs(x: Inputs) -> Tensor:
    scan = _of("mamba", "mamba_selective_scan")
    xs, dt, B, C = (x[n].transpose(1, 2) for n in ("x", "dt", "B", "C"))
    return scan(xs, dt, x["A"], B, C).transpose(1, 2)


def mamba_ours(x: Inputs, backend: str = "torch") -> Tensor:
    """All views, whose gradients are views as well."""
    B, C = (x[n].unsqueeze(2) for n in ("B", "C"))
    v = (x["dt"] * x["x"]).unsqueeze(-1)
    return recurrence(C, B, v, OuterDecay(x["dt"], x["A"]), backend=_needs(backend))[0].squeeze(-1)


rwkv_numba, elementwise_numba, mamba_numba = (
    functools.partial(ours, backend="numba") for ours in (rwkv_ours, elementwise_ours, mamba_ours)
)


CORES = (
    Core(
        "lightning", "8 heads × 128", lambda T: _qkv(T, 8, 128, 128), lightning_theirs, lightning_ours, 1.5, 2
    ),
    Core("mamba2", "32 heads × 64, N 128", mamba2_inputs, mamba2_theirs, mamba2_ours, 8, 8),
    Core("gated-delta", "8 heads × 128", gated_delta_inputs, gated_delta_theirs, delta_ours, 1.5, 3),
    Core("kda", "8 heads × 128", kda_inputs, kda_theirs, delta_ours, 10, 30),
    Core("mlstm", "8 heads, K 64, V 128", mlstm_inputs, mlstm_theirs, mlstm_ours, 1.3, 2),
    Core("rwkv4", "width 1024", rwkv_inputs, rwkv_theirs, rwkv_ours, 8, 100),
    Core("rwkv4-numba", "width 1024", rwkv_inputs, rwkv_theirs, rwkv_numba, 8, 100),
    Core("rg-lru", "width 1024", rg_lru_inputs, rg_lru_theirs, elementwise_ours, 12, 1500),
    Core("rg-lru-numba", "width 1024", rg_lru_inputs, rg_lru_theirs, elementwise_numba, 12, 1500),
    Core("mamba", "d_inner 1536, N 16", mamba_inputs, mamba_theirs, mamba_ours, 30, 700, 512),
    Core("mamba-numba", "d_inner 1536, N 16", mamba_inputs, mamba_theirs, mamba_numba, 50, 1500, 512),
)


def measure(core: Core, both: bool, effort: Effort) -> Measured:
    T = core.both_length if both else LENGTH
    x = core.inputs(effort.size(T, min(T, 256)))
    with torch.no_grad():
        theirs, ours = core.theirs(x), core.ours(x)
        error = float((theirs - ours).abs().max() / ours.abs().max())
    if not error < 1e-3:
        raise Missing(f"a reference that computes the same (it differs by {error:.1g})")
    if both:
        leaves = list(x.values())
        calls = [forward_and_backward(lambda f=f: f(x), leaves) for f in (core.theirs, core.ours)]  # type: ignore[misc]
    else:
        calls = [forward(lambda f=f: f(x)) for f in (core.theirs, core.ours)]  # type: ignore[misc]
    return in_turns(calls[0], calls[1], effort)


def bars() -> list[Bar]:
    found = []
    for core in CORES:
        for both, least in ((False, core.forward), (True, core.both)):
            T = core.both_length if both else LENGTH
            name = f"{core.name}-{'forward-backward' if both else 'forward'}"
            text = f"transformers' core over ours: {core.shape}, T {T}"
            call = functools.partial(measure, core, both)
            found.append(Bar("references", name, text, call, at_least=float(least)))
    return found
