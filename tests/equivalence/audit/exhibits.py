"""Kernels and modules that are right, and the same with one fault each.

The kernel is attention with a decay for each head: S_t = e^{g_t} S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixerzoo.equivalence.audit.targets.adapter import Adapter, Argument, State
from mixerzoo.equivalence.audit.targets.module import ModuleAdapter

CHUNK = 4
PIECES = ("decode", "chunked_prefill", "state_gradients")
ARGUMENTS = {
    "q": Argument("B T H K"),
    "k": Argument("B T H K", "unit"),
    "v": Argument("B T H V"),
    "g": Argument("B T H", "log_decay"),
}
PLAIN = Adapter(ARGUMENTS, state=(State("B H K V"),), lengths=(3, 5, 9))
FULL = Adapter(ARGUMENTS, state=PLAIN.state, lengths=PLAIN.lengths, mask="mask", cu_seqlens="cu_seqlens")
STEPPED = Adapter(ARGUMENTS, state=PLAIN.state, lengths=PLAIN.lengths, step="one")
CLAMPED = Adapter(ARGUMENTS, state=PLAIN.state, lengths=PLAIN.lengths, step="one_clamped")


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def one(q, k, v, g, initial_state=None, fault=""):
    """Token by token."""
    acc = q.dtype if fault == "rounded_state" else wide(q)
    o, S = [], initial_state
    if S is None:
        S = torch.zeros(*q.shape[::2], k.shape[-1], v.shape[-1], dtype=acc)
    for t in range(q.shape[1]):
        gt = g[:, t].clamp(min=-0.3) if fault == "clamped" else g[:, t]
        S = gt.to(acc).exp()[..., None, None] * S + k[:, t, ..., None].to(acc) * v[:, t, :, None].to(acc)
        o.append((q[:, t, ..., None].to(acc) * S).sum(-2).to(q.dtype))
    return torch.stack(o, 1), S


def one_clamped(q, k, v, g, initial_state=None):
    return one(q, k, v, g, initial_state, "clamped")


def segments(g: Tensor, fault: str = "") -> Tensor:
    """[..., t, s]: the sum of g after s up to t; -inf where s is later."""
    t = torch.arange(g.shape[-1])
    if fault == "cumsum_difference":
        c = g.cumsum(-1)
        return (c[..., :, None] - c[..., None, :]).masked_fill(t[:, None] < t, -torch.inf)
    last = {"strict_mask": t[:, None] - 1, "late_mask": t[:, None] + 1}.get(fault, t[:, None])
    sums = torch.where(t[:, None] > t, g[..., :, None], 0.0).cumsum(-2)
    return sums.masked_fill(last < t, -torch.inf)


CACHE: list[Tensor] = []


def attention(q, k, v, g, initial_state=None, mask=None, cu_seqlens=None, fault=""):
    """In chunks."""
    if fault == "rounded_state":
        return one(q, k, v, g, initial_state, fault)
    if fault == "restarts" and q.shape[1] > 1:
        initial_state = None
    if fault == "module_global" and initial_state is not None:
        initial_state = CACHE[-1]
    if fault == "writes_to_q":
        q *= 0.5
    if cu_seqlens is not None and fault != "packed_leaks":
        parts = [
            attention(*(x[:, a:b] for x in (q, k, v, g)), fault=fault)
            for a, b in zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:], strict=True)
        ]
        return torch.cat([o for o, _ in parts], 1), torch.cat([S for _, S in parts])
    acc = torch.float32 if fault == "float32_inside" else wide(q)
    dtype = q.dtype
    if mask is not None and fault != "mask_ignored":
        k = torch.where(mask[..., None, None], k, 0.0)
        if fault != "padding_decays":
            g = torch.where(mask[..., None], g, 0.0)
    if fault == "detached_q":
        q = q.detach()
    if fault == "log_of_decay":
        g = g.to(wide(g)).exp().log()
    q, k, v, g = (x.transpose(1, 2).to(acc) for x in (q, k, v, g))
    S = initial_state
    if S is None:
        S = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    if fault == "initial_detached":
        S = S.detach()
    outputs = []
    for a in range(0, q.shape[2], CHUNK):
        qc, kc, vc, gc = (x[:, :, a : a + CHUNK] for x in (q, k, v, g))
        weights = segments(gc, fault).exp()
        undecayed = fault == "first_of_chunk"
        into = torch.cat([torch.zeros_like(gc[..., :1]), gc[..., 1:]], -1) if undecayed else gc
        into = into.cumsum(-1)
        outputs.append((qc @ kc.mT * weights) @ vc + into.exp()[..., None] * (qc @ S))
        after = segments(gc)[..., -1, :].exp()
        S = into[..., -1, None, None].exp() * S + (after[..., None] * kc).mT @ vc
        if fault == "rows_mixed":
            S = S.mean(0, keepdim=True).expand_as(S)
    if fault == "module_global":
        CACHE[:] = [S]
    if fault == "final_detached":
        S = S.detach()
    o = torch.cat(outputs, 2).transpose(1, 2)
    if fault == "float32_buffer":
        buffer = torch.zeros(o.shape)
        buffer[:] = o
        o = buffer
    return o.to(dtype), S


# Each fault with how it is called and the properties it breaks; it has all others that it can have.
FAULTS = {
    "right": (FULL, set()),
    "right_with_step": (STEPPED, set()),
    "first_of_chunk": (PLAIN, {"decode", "chunked_prefill"}),
    "strict_mask": (STEPPED, {"decode"}),
    "late_mask": (STEPPED, {"decode", "chunked_prefill"}),
    "padding_decays": (FULL, {"padding_right", "padding_inside"}),
    "mask_ignored": (FULL, {"padding_left", "padding_right", "padding_inside"}),
    "packed_leaks": (FULL, {"packed"}),
    "cumsum_difference": (STEPPED, {"decay_extremes"}),
    "log_of_decay": (FULL, {"decay_extremes"}),
    "initial_detached": (PLAIN, {"state_gradients"}),
    "final_detached": (PLAIN, {"state_gradients"}),
    "detached_q": (FULL, {"gradients"}),
    "rows_mixed": (PLAIN, {"batch"}),
    "module_global": (PLAIN, {"interleaved"}),
    "writes_to_q": (PLAIN, {"interleaved"}),
    "restarts": (PLAIN, {"chunked_prefill"}),
    "decode_clamps": (CLAMPED, {"decode"}),
    "float32_inside": (FULL, {"fp64"}),
    "float32_buffer": (FULL, {"fp64"}),
    "rounded_state": (PLAIN, {"low_precision"}),
}


def _named(fault: str):
    def kernel(q, k, v, g, initial_state=None, mask=None, cu_seqlens=None):
        return attention(q, k, v, g, initial_state, mask, cu_seqlens, fault)

    kernel.__name__ = kernel.__qualname__ = fault
    return kernel


for _fault in FAULTS:
    globals()[_fault] = _named(_fault)
ADAPTER = {name: adapter for name, (adapter, _) in FAULTS.items()}


# ---------------------------------------------------------------- modules


class Right(nn.Module):
    """A linear recurrence with a gate: S ← a ∘ S + (1 - a) ∘ z, y = o ∘ S."""

    fault = ""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, 3 * d_model)
        self.norm = nn.LayerNorm(d_model)
        self.kept: Tensor | None = None

    def gates(self, x: Tensor) -> tuple[Tensor, ...]:
        a, z, o = self.proj(self.norm(x)).chunk(3, -1)
        if self.fault == "rows":
            z = z - 0.5 * z.mean(0, keepdim=True)
        if self.fault == "float":
            a = a.float()
        return torch.sigmoid(a).to(x.dtype), z, F.silu(o)

    def forward(self, x: Tensor, state: Tensor | None = None, mask: Tensor | None = None):
        a, z, o = self.gates(x)
        S = torch.zeros_like(x[:, 0]) if state is None else state
        if self.fault == "kept" and state is not None:
            S = self.kept
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool)
        y = []
        for t in range(x.shape[1]):
            write = torch.where(mask[:, t, None], z[:, t], 0.0)
            decayed = a[:, t] * S + (1 - a[:, t]) * write
            S = decayed if self.fault == "padding" else torch.where(mask[:, t, None], decayed, S)
            y.append(o[:, t] * S)
        self.kept = S
        return torch.stack(y, 1), S

    def step(self, x_t: Tensor, state: Tensor | None = None):
        y, S = self(x_t[:, None] * (1.01 if self.fault == "step" else 1.0), state)
        return y[:, 0], S


class Wrong_rows(Right):
    fault = "rows"


class Wrong_kept(Right):
    fault = "kept"


class Wrong_padding(Right):
    fault = "padding"


class Wrong_step(Right):
    fault = "step"


class Wrong_float(Right):
    fault = "float"


MODULES = {
    "Right": set(),
    # A row that is not alone is not padded alone either.
    "Wrong_rows": {"batch", "padding_left", "padding_right", "padding_inside"},
    "Wrong_kept": {"interleaved"},
    "Wrong_padding": {"padding_right", "padding_inside"},
    "Wrong_step": {"decode"},
    "Wrong_float": {"fp64"},
}
GRU = ModuleAdapter({"input_size": 4, "hidden_size": 4, "batch_first": True}, width=4, state="hx")
LSTM = ModuleAdapter({"input_size": 4, "hidden_size": 4}, width=4, state="hx", layout="T B D")
