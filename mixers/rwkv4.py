"""RWKV-4: attention without queries, a decay and a bonus for each channel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .arguments import whole
from .base import Core, MixerState, RecurrentMixer, Tokens, accumulation, cast
from .parts import layer_of, ones
from .sequences import level, previous, stabilise

# How large a bonus may be, either way, where all tokens have one m.
BONUS = 20.0


def attend(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: MixerState, tokens: Tokens) -> Core:
    """The weighted mean as a recurrence, whose outputs `mean` divides: keys k [B, T, width] in the
    accumulation dtype, values v, the decay w and the bonus u [width]. `rest` is what `mean` takes.

    Where keys differ by little, one m serves all tokens and decays stay constant; else it follows them."""
    assert state.recurrent is not None and state.stabiliser is not None
    log_f = -w
    found = level(log_f, k, state.stabiliser, tokens, v.dtype)
    if found is None or not bool((u.abs() <= BONUS).all()):
        s = stabilise(log_f.expand_as(k), k, state.stabiliser, tokens)
        past = torch.sigmoid(s.ago - u)  # the share of what was before
        written, decay = _with_weights(torch.exp(s.log_write), v), s.log_decay.unsqueeze(2)
        return _core(written, decay, rest=(written, v, past), stabiliser=s.end)
    written = _with_weights((k - found.m[:, None]).exp_(), v)
    before, after = (
        torch.exp(z).to(k.dtype).repeat(1, 2)[:, None, None]
        for z in (state.stabiliser - found.m, found.m - found.end)
    )
    own, initial = torch.exp(u), state.recurrent * before
    return _core(
        written, log_f[None], initial=initial, factor=after, rest=(written, own), stabiliser=found.end
    )


def _core(written: Tensor, log_decay: Tensor, **others: Any) -> Core:
    """With one log-decay for values and their weights."""
    v, decay = written.unsqueeze(2), torch.cat([log_decay, log_decay], -1)
    one = ones(v)
    return Core(one, one, v, log_decay_v=decay, read="before", **others)


def _with_weights(e: Tensor, v: Tensor) -> Tensor:
    """[e v, e], in v's dtype."""
    if torch.is_grad_enabled() or e.shape[1] == 1:
        return cast(torch.cat([e * v, e], -1), v.dtype)
    written = e.new_empty(*e.shape[:-1], 2 * e.shape[-1])
    of_values, weights = written.chunk(2, -1)
    torch.mul(e, v, out=of_values)
    weights.copy_(e)
    return cast(written, v.dtype)


def mean(o: Tensor, written: Tensor, own: Tensor, past: Tensor | None = None) -> Tensor:
    """Of [values, 1], weighed, from before the token, o [B, T, 1, 2 width], and of its own: of what it writes
    [B, T, 2 width] times e^u; or, with the share of the past, of its value."""
    o = o.select(2, 0)
    if past is None:
        above, below = torch.addcmul(cast(o, own.dtype), cast(written, own.dtype), own.repeat(2)).chunk(2, -1)
        return above / below
    above, below = cast(o, past.dtype).chunk(2, -1)
    return torch.lerp(cast(own, past.dtype), above, past) / torch.addcmul(1 - past, past, below)


class RWKV4(RecurrentMixer):
    """RWKV-4's time mixing: a weighted mean of values, by exponentials of keys that decay with distance.

        x^z_t = μ_z ∘ x_t + (1 - μ_z) ∘ x_{t-1}        k, v = W_k x^k, W_v x^v        r = σ(W_r x^r)
        wkv_t = Σ_{s≤t} e^{g_ts} v_s / Σ_{s≤t} e^{g_ts}        g_ts = k_s - (t - 1 - s) w,  g_tt = k_t + u
        y = W_o (r ∘ wkv)        w = exp(time_decay), u = time_first

    Reduction: K = 1, q = k = 1, read="before", V twice the channels; with m_t = max(m_{t-1} - w, k_t) kept
    beside the state, log_decay_v = -w + m_{t-1} - m_t and v = [e^{k - m} v, e^{k - m}]. Where the keys of a
    call differ by little, m is one for all its tokens, and the decay -w. The current token with its bonus u,
    and the division, are outside. The last x is kept in state.window.

    Args:
        d_model: width of x and y.
        width: channels of the recurrence, d_model by default.
        layer_idx, num_layers: l and L of the initialisation.

    Parameters have the names and shapes of `RwkvSelfAttention` in transformers, whose state_dict loads.
    The rows of `attention_map`, the mean over all channels, sum to 1.

    Raises:
        TypeError: an option of another type.
        ValueError: a size below 1; layer_idx is not below num_layers.

    Paper: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era" (arXiv:2305.13048), time
        mixing, and its appendix for the maximum. Initialisation as released: time_decay_i =
        -5 + 8 (i/(n - 1))^{0.7 + 1.3 l/(L - 1)}, time_first = log 0.3 plus 0.5 ((i + 1) mod 3 - 1), μ powers
        of i/d_model; the matrices as `nn.Linear`.
    """

    def __init__(
        self, d_model: int, width: int | None = None, layer_idx: int = 0, num_layers: int = 1
    ) -> None:
        super().__init__(d_model)
        layer_of(layer_idx, num_layers)
        width = d_model if width is None else whole("width", width, ", or None")
        self.time_decay = nn.Parameter(torch.empty(width))
        self.time_first = nn.Parameter(torch.empty(width))
        self.time_mix_key = nn.Parameter(torch.empty(1, 1, d_model))
        self.time_mix_value = nn.Parameter(torch.empty(1, 1, d_model))
        self.time_mix_receptance = nn.Parameter(torch.empty(1, 1, d_model))
        self.key = nn.Linear(d_model, width, bias=False)
        self.value = nn.Linear(d_model, width, bias=False)
        self.receptance = nn.Linear(d_model, width, bias=False)
        self.output = nn.Linear(width, d_model, bias=False)
        self.state_shape = (1, 1, 2 * width)
        self.window_shape = (1, d_model)
        self.stabiliser_shape = (width,)
        self._initialise(layer_idx / max(num_layers - 1, 1), 1 - layer_idx / num_layers)

    @torch.no_grad()
    def _initialise(self, depth: float, height: float) -> None:
        i = torch.arange(len(self.time_decay))
        self.time_decay.copy_(-5 + 8 * (i / max(len(i) - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first.copy_(math.log(0.3) + 0.5 * ((i + 1) % 3 - 1))
        share = torch.arange(self.d_model) / self.d_model
        self.time_mix_key.copy_(share**height)
        self.time_mix_value.copy_(share**height + 0.3 * depth)
        self.time_mix_receptance.copy_(share ** (0.5 * height))

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        assert state.window is not None
        before, window = previous(x, state.window, tokens)

        def mixed(share: Tensor, proj: nn.Linear) -> Tensor:
            if share.dtype == x.dtype:
                return proj(torch.lerp(before, x, share))
            return proj((x * share + before * (1 - share)).to(x.dtype))

        k, v = mixed(self.time_mix_key, self.key), mixed(self.time_mix_value, self.value)
        r = torch.sigmoid(mixed(self.time_mix_receptance, self.receptance))
        acc = accumulation(x.dtype)
        w = cast(self.time_decay, acc).clamp(max=80).exp()  # a decay of 0 from far below
        core = attend(cast(k, acc), v, w, cast(self.time_first, acc), state, tokens)
        return core._replace(rest=(r, *core.rest), window=window)

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        r, *rest = core.rest
        return self.output(r * cast(mean(o, *rest), r.dtype))

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """With e^{k - m} of every token, the current one, and the division."""
        _, written, own, *rest = core.rest
        e = written.chunk(2, -1)[1].mT  # [B, width, T]
        if rest:
            past = rest[0].mT
            w = weights.chunk(2, 1)[0] * e[..., None, :] * past[..., None] + torch.diag_embed(1 - past)
        else:
            w = weights.chunk(2, 1)[0] * e[..., None, :] + torch.diag_embed(e * own[:, None])
        return w / w.sum(-1, keepdim=True)
