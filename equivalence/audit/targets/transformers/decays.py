"""How the decays of each family are brought to their ends, by the parameters that set them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .profile import Decays

RATE = 200.0  # of exp(A_log): with a step of 50, a log-decay of -10,000


def _half(x: Tensor, low: float, high: float) -> None:
    """The first half of the last dimension low, the rest high."""
    x.fill_(low)
    x[..., x.shape[-1] // 2 :] = high


def _step(weight: Tensor, bias: Tensor) -> None:
    """softplus(weight x + bias): 50 where channel 0 of x is 1, 5e-5 where it is 0."""
    weight.zero_()
    weight[..., 0] = 60.0
    bias.fill_(-10.0)


def _never(m: Any) -> None:
    m.A_log.fill_(-40.0)


def _always(m: Any) -> None:
    m.A_log.fill_(12.0)


def _mamba2_resets(m: Any) -> None:
    m.A_log.fill_(RATE).log_()
    _step(m.in_proj.weight[-m.num_heads :], m.dt_bias)


def _gated_delta_resets(m: Any) -> None:
    m.A_log.fill_(RATE).log_()
    _step((m.a_proj if hasattr(m, "a_proj") else m.in_proj_a).weight, m.dt_bias)


def _qwen3_next_resets(m: Any) -> None:
    """The rows of b and a run by key heads."""
    m.A_log.fill_(RATE).log_()
    rows = m.in_proj_ba.weight.view(m.num_k_heads, -1, m.in_proj_ba.weight.shape[-1])
    _step(rows[:, rows.shape[1] // 2 :], m.dt_bias)


def _kimi_resets(m: Any) -> None:
    g = m.forget_gate
    g.A_log.fill_(RATE).log_()
    if hasattr(g, "f_proj"):
        _step(g.f_proj.weight, g.dt_bias)
    else:
        g.f_a_proj.weight.zero_()
        g.f_a_proj.weight[0, 0] = 1.0
        _step(g.f_b_proj.weight, g.dt_bias)


def _xlstm_resets(m: Any) -> None:
    m.fgate_preact.weight.zero_()
    m.fgate_preact.weight[:, 0] = -1e4
    m.fgate_preact.bias.fill_(5.0)


MAMBA = Decays(_never, _always, None)
MAMBA2 = Decays(_never, _always, _mamba2_resets)
GATED_DELTA = Decays(_never, _always, _gated_delta_resets)
QWEN3_NEXT = Decays(_never, _always, _qwen3_next_resets)
KIMI = Decays(lambda m: _never(m.forget_gate), lambda m: _always(m.forget_gate), _kimi_resets)
RG_LRU = Decays(
    lambda m: m.rg_lru.recurrent_param.fill_(-40.0),
    lambda m: m.rg_lru.recurrent_param.fill_(1e4),
    lambda m: _half(m.rg_lru.recurrent_param, -10.0, 1e4),
)
RWKV = Decays(
    lambda m: m.time_decay.fill_(-40.0),
    lambda m: m.time_decay.fill_(10.0),
    lambda m: _half(m.time_decay, -10.0, 10.0),
)
XLSTM = Decays(
    lambda m: m.fgate_preact.bias.fill_(1e4), lambda m: m.fgate_preact.bias.fill_(-1e4), _xlstm_resets
)
