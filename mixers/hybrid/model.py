"""The language model: embedding, blocks, head; one state for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import checks
from ..arguments import whole
from ..base import Mixer, MixerState
from ..parts import RMSNorm
from ..registry import REGISTRY, build
from . import checkpoint, generation, minimax
from .config import SOFTMAX, HybridConfig
from .feed_forward import MixtureOfExperts, SwiGLU

Mix = Callable[[Mixer, Tensor, MixerState | None], tuple[Tensor, MixerState]]


@dataclass(frozen=True)
class HybridState:
    """All that a `HybridLM` remembers: what each layer's mixer does, recurrent states and keys and values
    side by side. Passed in and returned, never kept in the model or changed in place.
    """

    layers: tuple[MixerState, ...]

    @property
    def position(self) -> Tensor:
        """Tokens seen so far [N], int64."""
        return self.layers[0].position

    def detach(self) -> HybridState:
        """The same numbers without their history, for backpropagation that is cut between pieces."""
        return HybridState(tuple(layer.detach() for layer in self.layers))


def place(mixer: str, layer_idx: int, num_layers: int) -> dict[str, int]:
    """The two options, of which a mixer of the registry may have both, one or neither."""
    known = signature(REGISTRY[mixer].factory).parameters
    options = {"layer_idx": layer_idx, "num_layers": num_layers}
    return {name: value for name, value in options.items() if name in known}


class HybridBlock(nn.Module):
    """h = norm(x), x ← α r + β mixer(h); h = norm(x), x ← α' r + β' mlp(h); r is x, or with postnorm h."""

    mixer: Mixer

    def __init__(self, config: HybridConfig, layer_idx: int) -> None:
        super().__init__()
        softmax = config.types()[layer_idx] == SOFTMAX
        name = config.softmax if softmax else config.linear
        options = config.softmax_options if softmax else config.linear_options
        options = {**place(name, layer_idx, config.num_layers), **options}
        self.postnorm = config.postnorm
        self.alpha = config.softmax_alpha if softmax else config.linear_alpha
        self.beta = config.softmax_beta if softmax else config.linear_beta
        self.mlp_alpha, self.mlp_beta = config.mlp_alpha, config.mlp_beta
        self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mixer = build(name, config.d_model, **options)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp: SwiGLU | MixtureOfExperts
        if config.num_experts is None:
            self.mlp = SwiGLU(config.d_model, config.mlp_width())
        else:
            self.mlp = MixtureOfExperts(
                config.d_model, config.mlp_width(), config.num_experts, config.experts_per_token
            )
        for p in self.mlp.parameters():
            nn.init.normal_(p, std=config.init_std)

    def forward(self, x: Tensor, state: MixerState | None, mix: Mix) -> tuple[Tensor, MixerState]:
        h = self.mixer_norm(x)
        y, state = mix(self.mixer, h, state)
        x = self.alpha * (h if self.postnorm else x) + self.beta * y
        h = self.mlp_norm(x)
        return self.mlp_alpha * (h if self.postnorm else x) + self.mlp_beta * self.mlp(h), state


class HybridLM(nn.Module):
    """A language model of linear mixers, with softmax attention in one layer of every `period`.

    As MiniMax-01: blocks of a mixer and a SwiGLU (or a mixture of them), each behind an RMSNorm; no
    position embedding but the mixers' own (softmax attention turns queries and keys by position). Any mixer
    of the registry may stand in either place.

    `forward` over whole sequences, over consecutive pieces of them with the state handed on, and `step`
    token by token are the same function, to rounding, with padding anywhere and for packed sequences.

    Args:
        config: a `HybridConfig`, kept as `self.config`.

    Raises:
        TypeError, ValueError: an option that a mixer does not have or take, naming it.

    Paper: MiniMax 2025, "MiniMax-01: Scaling Foundation Models with Lightning Attention"
        (arXiv:2501.08313), section 2. Initialisation: normal, deviation `init_std`; mixers as their own
        papers say.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        if not isinstance(config, HybridConfig):
            raise TypeError(f"config is {type(config).__name__}; accepted: a HybridConfig")
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.layers = nn.ModuleList(HybridBlock(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head: nn.Linear | None = None
        if not config.tied:
            self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=config.init_std)

    # ---------------------------------------------------------------- running

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> HybridState:
        """The state before the first token; dtype is that of the parameters."""
        return HybridState(tuple(b.mixer.initial_state(batch_size, device, dtype) for b in self._blocks()))

    def forward(
        self,
        ids: Tensor,
        state: HybridState | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        form: str = "auto",
    ) -> tuple[Tensor, HybridState]:
        """Sequences of tokens, or the next pieces of some.

        Args:
            ids: tokens [B, T], int64 or int32.
            state: what an earlier call returned; None at the start.
            mask: [B, T] bool, False where a token is padding, anywhere in a row: whatever its id is, its
                logits are 0 and the state skips it.
            cu_seqlens: packed sequences: int offsets [N + 1] from 0 to T, with B = 1. Not together with
                mask.
            form: of the core, see `mixerzoo.kernels.recurrence`.

        Returns:
            logits [B, T, vocab_size], and the state after the last token of every sequence.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what is accepted.
        """
        x, state = self._hidden(ids, state, mask, cu_seqlens, form)
        return self._logits(x), state

    def prefill(
        self, ids: Tensor, state: HybridState | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, HybridState]:
        """As `forward`, but logits [B, vocab_size] only after the last token of every row.

        Raises:
            ValueError: a row has no token.
        """
        x, state = self._hidden(ids, state, mask, None, "auto")
        if ids.shape[1] == 0:
            raise ValueError(f"ids has shape {checks.shape(ids)}; accepted: at least one token in every row")
        if mask is None:
            return self._logits(x[:, -1]), state
        if checks.checking(mask) and not bool(mask.any(1).all()):
            raise ValueError("mask has a row without a token; accepted: at least one in every row")
        places = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, places, -1).amax(1)
        return self._logits(x[torch.arange(x.shape[0], device=x.device), last]), state

    def step(
        self,
        ids_t: Tensor,
        state: HybridState | None = None,
        mask: Tensor | None = None,
        inplace: bool = False,
    ) -> tuple[Tensor, HybridState]:
        """The next token of every row.

        Args:
            ids_t: tokens [B], int64 or int32.
            state: what an earlier call returned; None at the start.
            mask: [B] bool; a row where it is False has no token: logits 0, state as it was.
            inplace: the state given is used up, see `Mixer.step`. Without gradients only.

        Returns:
            logits [B, vocab_size], and the state after the token.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what is accepted.
        """
        x = self._embed("ids_t", ids_t, mask, "[B]")
        x, state = self._run(x, state, lambda mixer, h, before: mixer.step(h, before, mask, inplace))
        return self._logits(x), state

    def _hidden(
        self,
        ids: Tensor,
        state: HybridState | None,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        form: str,
    ) -> tuple[Tensor, HybridState]:
        x = self._embed("ids", ids, mask, "[B, T]")
        return self._run(x, state, lambda mixer, h, before: mixer(h, before, mask, cu_seqlens, form))

    def _run(self, x: Tensor, state: HybridState | None, mix: Mix) -> tuple[Tensor, HybridState]:
        states: list[MixerState] = []
        for block, before in zip(self._blocks(), self._states(state), strict=True):
            x, after = block(x, before, mix)
            states.append(after)
        return x, HybridState(tuple(states))

    def _embed(self, name: str, ids: Tensor, mask: Tensor | None, written: str) -> Tensor:
        """Embeddings, 0 at padding: norms, maps without bias and mixers all keep that 0."""
        weight, last = self.embedding.weight, self.config.vocab_size - 1
        accepted = f"{written}, int64 or int32, from 0 to vocab_size - 1 = {last}"
        ids = checks.tensor(name, ids, accepted)
        if ids.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"{name} has dtype {ids.dtype}; accepted: {accepted}")
        if ids.ndim != written.count(",") + 1:
            raise ValueError(f"{name} has shape {checks.shape(ids)}; accepted: {accepted}")
        if ids.device != weight.device:
            raise ValueError(f"{name} is on {ids.device}; accepted: the device of the model, {weight.device}")
        if mask is not None:
            checks.valid_mask("mask", mask, tuple(ids.shape), written, ids.device)
            ids = torch.where(mask, ids, torch.zeros_like(ids))
        if ids.numel() and checks.checking(ids):
            low, high = (int(y) for y in torch.aminmax(ids))
            if low < 0 or high > last:
                raise ValueError(f"{name} has {low if low < 0 else high}; accepted: {accepted}")
        x = self.embedding(ids)
        return x if mask is None else torch.where(mask[..., None], x, torch.zeros_like(x))

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.embedding.weight if self.head is None else self.head.weight)

    def _blocks(self) -> list[HybridBlock]:
        return list(self.layers)  # type: ignore[arg-type]

    def _states(self, state: HybridState | None) -> Sequence[MixerState | None]:
        if state is None:
            return [None] * self.config.num_layers
        if not isinstance(state, HybridState):
            raise TypeError(f"state is {type(state).__name__}; accepted: a HybridState, or None at the start")
        if len(state.layers) != self.config.num_layers:
            raise ValueError(
                f"state has {len(state.layers)} layers; accepted: num_layers = {self.config.num_layers}"
            )
        return state.layers

    @torch.no_grad()
    def attention_maps(self, ids: Tensor) -> list[Tensor]:
        """The mixers' implicit attention maps on tokens [B, T]: one [B, heads, T, T] for each layer."""
        maps: list[Tensor] = []

        def mix(mixer: Mixer, h: Tensor, before: MixerState | None) -> tuple[Tensor, MixerState]:
            maps.append(mixer.attention_map(h))
            return mixer(h, before)

        self._run(self._embed("ids", ids, None, "[B, T]"), None, mix)
        return maps

    # ---------------------------------------------------------------- generating

    def stream(
        self,
        ids: Tensor,
        max_new_tokens: int,
        mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """What `generate` appends, one [B] of tokens at a time, each as soon as it is known."""
        whole("max_new_tokens", max_new_tokens)
        choose = generation.Sampling(temperature, top_k, top_p, generator)
        stops = generation.stop_tokens(eos_token_id, self.config.vocab_size)
        return generation.stream(self, ids, max_new_tokens, mask, choose, stops)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Prompts and what follows them: the prompts at once, then one step for every token.

        A row's tokens by temperature 0 are those it has alone, whatever the others are.

        Args:
            ids: prompts [B, T].
            max_new_tokens: how many tokens follow at most.
            mask: [B, T] bool, False where a prompt is padded, anywhere in its row.
            temperature: 0 takes the likeliest token; above 0, softmax(logits / temperature) is drawn from.
            top_k: only the k likeliest are drawn from.
            top_p: of these, only the likeliest that together have probability top_p, one at least.
            eos_token_id: a row ends at this token, or at any of these; from then on it repeats it. When
                all rows have ended, so does the call.
            generator: of random numbers, on the device of the model; None: torch's own.

        Returns:
            [B, T + n]: ids as given, and n ≤ max_new_tokens new ones.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what is accepted.
        """
        new = self.stream(ids, max_new_tokens, mask, temperature, top_k, top_p, eos_token_id, generator)
        return torch.cat([ids, torch.stack(list(new), 1).to(ids.dtype)], 1)

    # ---------------------------------------------------------------- weights

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` and `model.safetensors` into the folder, which is made if missing.

        Raises:
            TypeError: an option of the config that JSON has no form for.
        """
        checkpoint.save(self, folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> HybridLM:
        """The model that `save` wrote, its parameters in the dtypes they had.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the config has an unknown name or lacks one; a tensor is missing, is not one of
                the model's, or has another shape.
        """
        return checkpoint.load(cls, folder, device)

    @classmethod
    def from_minimax(cls, model: Any) -> HybridLM:
        """transformers' `MiniMaxForCausalLM` with its weights (copies of them).

        The same function as theirs, which rotates all of a head's channels; MiniMax's own release
        rotates half of them (`softmax_options={"rotary_dim": head_dim // 2}`). Left out: dropout of
        attention weights and jitter of the router's inputs, which act in training only.

        Raises:
            TypeError: model is another.
            ValueError: its config has what is not here: a sliding window, an activation other than
                silu, scaled rotary frequencies.
        """
        return minimax.convert(cls, model)
