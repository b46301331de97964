"""Softmax attention, the yardstick: no recurrence, and a state that grows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import flag, number, whole
from .base import Mixer, MixerState, Tokens, head_count, head_size, state_part
from .parts import angles, rotary_frequencies, rotate_pairs, zeroed
from .sliding_window import slide


class SoftmaxAttention(Mixer):
    """Causal softmax attention: y_t = W_o Σ_{s≤t} softmax_s(q_t·k_s / √head_dim) v_s.

    q and k are rotated by position. The one mixer that does not reduce to the core: its state is
    every key and value so far. `state.keys` and `state.values` have a place for every position; each
    call adds as many places as it has tokens, and padding leaves them unused. With a `window` the sum is over
    t - window < s ≤ t, and the state is the last window - 1 keys and values, the latest last: it does not
    grow. `form` and `backend` change nothing.

    On a CPU, torch's kernel for attention has no second derivative ("derivative for
    aten::_scaled_dot_product_flash_attention_for_cpu_backward is not implemented"); inside
    `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` there is one.

    Args:
        d_model: width of x and y.
        num_heads: heads; by default the most that divide d_model up to max(4, d_model / 64).
        head_dim: channels of a head, d_model / num_heads by default.
        num_kv_heads: heads of keys and values, a divisor of num_heads (grouped-query attention).
        rotary_base: of the rotary positions; None leaves positions out.
        rotary_dim: how many channels of a head are turned, its first ones; None: all.
        bias: of the projections.
        window: how many tokens a query looks at, itself among them (sliding-window attention); None: all.

    Raises:
        TypeError: an option of another type.
        ValueError: num_heads does not divide d_model and no head_dim was given; num_kv_heads does
            not divide num_heads; rotary_dim is odd or above head_dim.

    Paper: Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), eq. 1; positions by
        Su et al. 2021 (arXiv:2104.09864); windows by Beltagy et al. 2020 (arXiv:2004.05150).
        Initialisation: that of `nn.Linear`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int | None = None,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        rotary_base: float | None = 10000.0,
        rotary_dim: int | None = None,
        bias: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__(d_model)
        self.window = None if window is None else whole("window", window, ", or None")
        self.num_heads = head_count(d_model, num_heads)
        self.head_dim = head_size(d_model, self.num_heads, head_dim)
        self.num_kv_heads = self.num_heads
        if num_kv_heads is not None:
            self.num_kv_heads = whole("num_kv_heads", num_kv_heads, ", or None")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {num_kv_heads}; accepted: a divisor of num_heads = {self.num_heads}"
            )
        if rotary_base is not None:
            number("rotary_base", rotary_base, 0, above=True, also=", or None")
        self.rotary_base = rotary_base
        self.rotary_dim = self.head_dim
        if rotary_dim is not None:
            self.rotary_dim = whole("rotary_dim", rotary_dim, ", or None")
            if rotary_dim % 2 or rotary_dim > self.head_dim:
                raise ValueError(
                    f"rotary_dim is {rotary_dim}; accepted: an even number up to head_dim = {self.head_dim}"
                )
        flag("bias", bias)
        inner, inner_kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.q_proj = nn.Linear(d_model, inner, bias=bias)
        self.k_proj = nn.Linear(d_model, inner_kv, bias=bias)
        self.v_proj = nn.Linear(d_model, inner_kv, bias=bias)
        self.out_proj = nn.Linear(inner, d_model, bias=bias)

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        places = 0 if self.window is None else self.window - 1
        nothing = torch.zeros(
            batch_size, places, self.num_kv_heads, self.head_dim, device=device, dtype=dtype
        )
        position = torch.zeros(batch_size, device=device, dtype=torch.int64)
        return MixerState(position, keys=nothing, values=nothing)

    def check_state(self, state: MixerState, n: int, device: torch.device) -> None:
        places = None if self.window is None else self.window - 1
        written = f"[N, {'S' if places is None else 'window - 1'}, num_kv_heads, head_dim]"
        sizes = (n, places, self.num_kv_heads, self.head_dim)
        keys = state_part("state.keys", state.keys, written, sizes, device)
        state_part("state.values", state.values, written, tuple(keys.shape), device)

    def mix(
        self, x: Tensor, state: MixerState, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, MixerState]:
        q, k, v = self._projections(x, tokens.position)
        assert state.keys is not None and state.values is not None
        cached = state.keys.shape[1]
        if self.window is not None:
            o, keys, values = slide(self._attend, q, k, v, state, tokens, self.window)
        elif tokens.segment is not None:
            # A compiled graph cannot have a size that depends on lengths.
            packed = self._packed_dense if torch.compiler.is_compiling() else self._packed
            o, keys, values = packed(q, k, v, state, tokens, tokens.segment)
        elif cached == 0:
            # Padding, on the right, is seen by no valid query.
            keys, values = (y if tokens.valid is None else zeroed(tokens.valid, y) for y in (k, v))
            o = self._attend(q, k, v, None)
        else:
            keys, values = (_write(old, new, tokens) for old, new in ((state.keys, k), (state.values, v)))
            places = torch.arange(keys.shape[1], device=x.device)
            visible = places <= tokens.position[..., None]
            o = self._attend(q, keys.to(q.dtype), values.to(q.dtype), visible)
        y = self.out_proj(o.flatten(-2))
        return y, MixerState(tokens.advance(state.position), keys=keys, values=values)

    def _projections(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.rotary_base is not None and self.rotary_dim > 1:
            wave = angles(position, rotary_frequencies(self.rotary_dim, self.rotary_base, x.device)[None])
            q, k = rotate_pairs(q, *wave), rotate_pairs(k, *wave)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """q [B, T, H, D], k and v [B, S, Hkv, D], visible [B, T, S] or None for causal: [B, T, H, D]."""
        group, one = self.num_heads // self.num_kv_heads, q.shape[1] == 1 and visible is not None
        if one:
            # The queries of a group stand where those of a sequence would: nothing is repeated.
            q = q[:, 0].unflatten(1, (self.num_kv_heads, group)).transpose(1, 2)
        elif group > 1:
            k, v = (y.repeat_interleave(group, 2) for y in (k, v))
        o = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            None if visible is None else visible[:, None],
            is_causal=visible is None,
        )
        return o.reshape(q.shape[0], 1, self.num_heads, -1) if one else o.transpose(1, 2)

    def _packed(
        self, q: Tensor, k: Tensor, v: Tensor, state: MixerState, tokens: Tokens, segment: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Padded batches of sequences whose lengths are within a factor of two of each other."""
        assert state.keys is not None and state.values is not None
        assert tokens.lengths is not None and tokens.cu_seqlens is not None
        (N, S), T, device = state.keys.shape[:2], k.shape[1], k.device
        lengths = tokens.lengths.tolist()
        steps = torch.arange(max(lengths), device=device)
        position = state.position[:, None] + steps
        place = tokens.position[0] - state.position[segment]  # of a token among the new ones of its sequence

        def added(old: Tensor, new: Tensor) -> Tensor:
            padded = new.new_zeros(N, len(steps), *new.shape[2:]).index_put((segment, place), new[0])
            return _write(old, padded, Tokens(position, None))

        keys, values = added(state.keys, k), added(state.values, v)
        starts = tokens.cu_seqlens[:-1].long()
        batches: dict[int, list[int]] = {}
        for row, n in enumerate(lengths):
            if n:
                batches.setdefault((n - 1).bit_length(), []).append(row)
        found, first, size = [], [0] * N, 0  # first: where a sequence begins in what was found
        for members in batches.values():
            longest = max(lengths[row] for row in members)
            for row in members:
                first[row], size = size, size + longest
            rows, new = torch.tensor(members, device=device), steps[:longest]
            queries = q[0][(starts[rows, None] + new).clamp(max=T - 1)]
            # Another sequence's token in the padding would be harmless but for NaN.
            queries = zeroed(new < tokens.lengths[rows, None], queries)
            seen_k, seen_v = (y[rows, : S + longest].to(q.dtype) for y in (keys, values))
            visible = None
            if S:
                visible = torch.arange(S + longest, device=device) <= position[rows, :longest, None]
            found.append(self._attend(queries, seen_k, seen_v, visible).flatten(0, 1))
        o = torch.cat(found)[torch.tensor(first, device=device)[segment] + place]
        return o[None], keys, values

    def _packed_dense(
        self, q: Tensor, k: Tensor, v: Tensor, state: MixerState, tokens: Tokens, segment: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """By one block-diagonal mask, quadratic in T; caches [N, S] are laid out one after the other."""
        assert state.keys is not None and state.values is not None
        (N, S), T = state.keys.shape[:2], k.shape[1]
        steps = torch.arange(T, device=k.device)
        owner = torch.arange(N, device=k.device).repeat_interleave(S)
        filled = torch.arange(S, device=k.device).repeat(N) < state.position[owner]
        before = (segment[:, None] == owner) & filled
        now = (segment[:, None] == segment) & (steps[:, None] >= steps)
        keys, values = (
            torch.cat([old.flatten(0, 1)[None].to(new.dtype), new], 1)
            for old, new in ((state.keys, k), (state.values, v))
        )
        o = self._attend(q, keys, values, torch.cat([before, now], 1)[None])

        def added(old: Tensor, new: Tensor) -> Tensor:
            grown = torch.cat([old.to(new.dtype), new.new_zeros(N, T, *new.shape[2:])], 1)
            return grown.index_put((segment, tokens.position[0]), new[0])

        return o, added(state.keys, k), added(state.values, v)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """The probabilities [B, num_heads, T, T]: every row sums to 1."""
        self._check_input("x", x, 3, "[B, T, d_model]")
        T = x.shape[1]
        if T == 0:
            return x.new_zeros(x.shape[0], self.num_heads, 0, 0)
        steps = torch.arange(T, device=x.device)
        q, k, _ = self._projections(x, steps.expand(x.shape[:2]))
        k = k.repeat_interleave(self.num_heads // self.num_kv_heads, 2)
        scores = q.transpose(1, 2) @ k.transpose(1, 2).mT * self.head_dim**-0.5
        unseen = steps[:, None] < steps
        if self.window is not None:
            unseen = unseen | (steps[:, None] - steps >= self.window)
        return scores.masked_fill(unseen, -torch.inf).softmax(-1)


def _write(old: Tensor, new: Tensor, tokens: Tokens) -> Tensor:
    """The cache with the new tokens at their positions; padding is written as zeros behind them."""
    if tokens.valid is not None:
        new = zeroed(tokens.valid, new)
    at = tokens.position[..., None, None].expand_as(new)
    if tokens.inplace and old.dtype == new.dtype and not torch.compiler.is_compiling():
        return _grown(old, new.shape[1]).scatter_(1, at, new)
    return torch.cat([old.to(new.dtype), torch.zeros_like(new)], 1).scatter_(1, at, new)


def _grown(old: Tensor, more: int) -> Tensor:
    """old [N, S, H, D] with `more` zeros after each row, in its own memory where that has room behind them.

    What is made here has room for half as many places again, so that a copy is rare: strides of an
    [N, S + room, H, D] tell."""
    N, S, H, D = old.shape
    row = H * D
    capacity = old.stride(0) // row
    whole_memory = (
        old.storage_offset() == 0 and old.untyped_storage().nbytes() == N * capacity * row * old.itemsize
    )
    if whole_memory and old.stride() == (capacity * row, row, D, 1) and S + more <= capacity:
        return old.as_strided((N, S + more, H, D), old.stride())
    capacity = S + more + max(S // 2, 32)
    grown = old.new_zeros(N, capacity, H, D)[:, : S + more]
    grown[:, :S] = old
    return grown
