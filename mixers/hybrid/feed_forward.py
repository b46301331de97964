"""What follows the mixer in a block: a SwiGLU, or a choice of some."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import accumulation


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) ∘ W_up x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MixtureOfExperts(nn.Module):
    """The SwiGLUs that a router gives most weight, their outputs weighted.

        p = softmax(W_r x)        y = Σ_{e in top k} p_e / (Σ_{top k} p) · SwiGLU_e(x)

    No token is dropped, however many choose an expert, and no loss for balance is added. In a graph
    of torch.compile, whose sizes cannot depend on the routing, every expert sees every token.

    Parameters have the names and shapes of `MiniMaxSparseMoeBlock` in transformers: `gate.weight` [E,
    d_model], `experts.gate_up_proj` [E, 2 · width, d_model] (the gate's rows first) and
    `experts.down_proj` [E, d_model, width].

    Source: Jiang et al. 2024, "Mixtral of Experts" (arXiv:2401.04088), section 2.1.
    """

    def __init__(self, d_model: int, width: int, num_experts: int, per_token: int) -> None:
        super().__init__()
        self.num_experts, self.per_token = num_experts, per_token
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.experts = nn.ParameterDict(
            {
                "gate_up_proj": torch.empty(num_experts, 2 * width, d_model),
                "down_proj": torch.empty(num_experts, d_model, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        p = self.gate(tokens).to(accumulation(x.dtype)).softmax(-1)
        weight, chosen = p.topk(self.per_token, -1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        if torch.compiler.is_compiling():
            y = self._all(tokens, torch.zeros_like(p, dtype=x.dtype).scatter(1, chosen, weight))
        else:
            y = self._chosen(tokens, weight, chosen)
        return y.reshape(x.shape)

    def _chosen(self, tokens: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """Tokens sorted by expert, so that each expert is one product."""
        order = chosen.flatten().argsort(stable=True)
        sizes = chosen.flatten().bincount(minlength=self.num_experts).tolist()
        parts = tokens[order // self.per_token].split(sizes)
        # Gathered, not added into place: the sum over a token's experts keeps its order.
        found = [self._expert(e, part) for e, part in enumerate(parts) if len(part) or not len(tokens)]
        y = torch.cat(found)[order.argsort()].unflatten(0, chosen.shape)
        return (y * weight[..., None]).sum(1)

    def _all(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """weight [tokens, E], 0 where an expert was not chosen."""
        parts = [self._expert(e, tokens) * weight[:, e, None] for e in range(self.num_experts)]
        return torch.stack(parts).sum(0)

    def _expert(self, e: int, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.experts["gate_up_proj"][e]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.experts["down_proj"][e])
