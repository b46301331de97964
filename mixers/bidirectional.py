"""Both directions of a mixer at once, for encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import OuterDecay, recurrence
from .base import Core, Mixer, MixerState, RecurrentMixer, Tokens


class Bidirectional(Mixer):
    """A mixer in both directions, with the same weights: every output depends on the whole sequence.

        S_t = a_t ∘ S_{t-1} + k_t v_tᵀ        R_t = a_t ∘ R_{t+1} + k_t v_tᵀ
        o_t = S_tᵀ q_t + (a_t ∘ R_{t+1})ᵀ q_t

    so that (t, s) weighs Π a over (s, t] for s ≤ t and over [t, s) for s > t; the token itself counts once.

    Reduction: the core forwards, and the core reversed with read="before" and q ← q ∘ a.

    There is no state and no step: nothing is known of a token's output until all later tokens are there.
    `forward` returns a state that holds positions only.

    Args:
        mixer: a `RecurrentMixer` whose core is q, k, v and decays over keys alone (RetNet, GLA, …): the
            delta rule, convolutions and shifts of tokens have no second direction.

    Raises:
        TypeError: mixer is no such mixer, which some show in a call only.
        ValueError: in a call, a state was given.

    Paper: bidirectional retention is that of RMT (Fan et al. 2023, arXiv:2309.11523), D_ts = γ^|t-s|, in
        one dimension; for decays that depend on the input the second direction is what the mixer does to the
        reversed sequence.
    """

    causal = False

    def __init__(self, mixer: RecurrentMixer) -> None:
        accepted = "a RecurrentMixer without delta rule, convolution or shift, such as RetNet or GLA"
        if not isinstance(mixer, RecurrentMixer) or mixer.forms != RecurrentMixer.forms:
            raise TypeError(f"mixer is {type(mixer).__name__}; accepted: {accepted}")
        if any((mixer.window_shape, mixer.stabiliser_shape, mixer.angle_shape)):
            raise TypeError(f"mixer is {type(mixer).__name__}; accepted: {accepted}")
        super().__init__(mixer.d_model)
        self.mixer = mixer

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        return MixerState(torch.zeros(batch_size, device=device, dtype=torch.int64))

    def check_state(self, state: MixerState, n: int, device: torch.device) -> None:
        raise ValueError("state was given to a bidirectional mixer; accepted: None, with the whole sequence")

    def step(self, *_: Any, **__: Any) -> tuple[Tensor, MixerState]:
        raise TypeError("a bidirectional mixer has no step; accepted: a call with the whole sequence")

    def mix(
        self, x: Tensor, state: MixerState, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, MixerState]:
        core = self.mixer.operands(
            x, self.mixer.initial_state(len(state.position), x.device, x.dtype), tokens
        )
        o = self._both(core, tokens, form or "auto")
        return self.mixer.readout(o, x, core), MixerState(tokens.advance(state.position))

    def _both(self, core: Core, tokens: Tokens, form: str) -> Tensor:
        if core.read != "after" or core.log_decay_v is not None or isinstance(core.log_decay, OuterDecay):
            raise TypeError(
                f"mixer is {type(self.mixer).__name__}; accepted: one that reads after it writes, "
                "with decays over keys"
            )
        q, k, v, la = core.q.to(core.v.dtype), core.k.to(core.v.dtype), core.v, core.log_decay
        options: dict[str, Any] = {
            "scale": core.scale,
            "cu_seqlens": tokens.cu_seqlens,
            "mask": tokens.valid,
            "form": form,
            "backend": self.backend,
        }
        o, _ = recurrence(q, k, v, la, **options)
        if la is not None:
            decay = la.exp() if la.ndim == 4 else la.exp()[..., None]  # over [H, K], or of a head
            q = (q.repeat_interleave(v.shape[2] // q.shape[2], 2) * decay).to(v.dtype)
        back, _ = recurrence(q, k, v, la, read="before", reverse=True, **options)
        return o + back

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """How much the output at t takes from the token at s: [B, heads, T, T], row t, column s."""
        self._check_input("x", x, 3, "[B, T, d_model]")
        B, T, _ = x.shape
        if T == 0:
            return x.new_zeros(B, self.mixer.state_shape[0], 0, 0)
        tokens = Tokens(torch.arange(T, device=x.device).expand(B, T), None)
        core = self.mixer.operands(x, self.mixer.initial_state(B, x.device, x.dtype), tokens)
        H = core.v.shape[2]
        eye = torch.eye(T, device=x.device, dtype=core.v.dtype)[None, :, None].expand(B, T, H, T)
        return self.mixer.weigh(self._both(core._replace(v=eye), tokens, "auto").transpose(1, 2), core)


def both_ways(factory: Callable[..., RecurrentMixer]) -> Callable[..., Bidirectional]:
    """(d_model, **options) -> that mixer in both directions."""

    def made(d_model: int, **options: Any) -> Bidirectional:
        return Bidirectional(factory(d_model, **options))

    return made
