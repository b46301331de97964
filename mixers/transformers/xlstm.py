"""xLSTM's mLSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import MixerState, accumulation, cast
from ..mlstm import MLSTM
from .adapters import Adapter, representable
from .recipe import Recipe, Tensors


class XLSTMAdapter(Adapter):
    """Their state, passed in and out: C [B, H, K, V], n [B, H, K] and m [B, H, 1].

    Ours: [C, n] [B, H, K, V + 1], and m as the stabiliser."""

    indexed = False
    unmasked = True

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        before, dtype = None, accumulation(x.dtype)
        if state is not None:
            C, n, m = (cast(part, dtype) for part in state)
            before = self.before(x, recurrent=torch.cat([C, n.unsqueeze(-1)], -1), stabiliser=m.squeeze(-1))
            dtype = state[2].dtype
        y, after = self.mix(x, before)
        return y, to_theirs(after, dtype)


def to_theirs(state: MixerState, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """For caches of this dtype."""
    assert state.recurrent is not None and state.stabiliser is not None
    m, factor = representable(state.stabiliser, dtype)
    S = state.recurrent * factor.to(state.recurrent.dtype).unsqueeze(-1).unsqueeze(-1)
    return S[..., :-1], S[..., -1], m.unsqueeze(-1)


def build(theirs: Any) -> MLSTM:
    config = theirs.config
    return MLSTM(
        config.hidden_size,
        num_heads=config.num_heads,
        head_dim=theirs.v_dim // config.num_heads,
        key_dim=theirs.qk_dim // config.num_heads,
        gate_soft_cap=config.gate_soft_cap,
        normaliser_eps=config.eps,
        bias=config.use_bias,
        eps=config.norm_eps,
    )


def weights(theirs: Any, tensors: Tensors) -> Tensors:
    """With weight_mode "fused", maps lie one below the other."""
    K, V, heads = theirs.qk_dim, theirs.v_dim, theirs.config.num_heads
    fused = {
        "qkv_opreact": {"q": K, "k": K, "v": V, "ogate_preact": V},
        "ifgate_preact": {"igate_preact": heads, "fgate_preact": heads},
    }
    ours: Tensors = {}
    for name, x in tensors.items():
        first, _, rest = name.partition(".")
        if first in fused:
            parts = x.split(list(fused[first].values()))
            ours |= {f"{n}.{rest}": part for n, part in zip(fused[first], parts, strict=True)}
        else:
            ours[name] = x
    return ours


RECIPES = (Recipe("xlstm", "xLSTMLayer", build, weights, XLSTMAdapter),)
