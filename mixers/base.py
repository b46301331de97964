"""What every mixer shares: the state, padding, packing, and the way from a sequence to one token.

A mixer is written once, as a gate map (`operands`) and a readout; `forward` puts the whole
recurrence between the two and `step` one step of it. Padding is taken out here, before any mixer
sees it: valid tokens are moved to the front of their row, so convolutions, positions and the
recurrence know padding on the right only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernels import OuterDecay, checks, recurrence, step
from ..kernels.memory import new
from ..kernels.operator import FORMS
from .arguments import flag, whole

# Numbers that the widest of the inputs, keys and values has in what is taken at a time of a long sequence,
# tokens of a row at the least, and what these are a multiple of, so that chunks stay the same.
PIECE, FEWEST, WHOLE_CHUNKS = 1 << 19, 1024, 256


@dataclass(frozen=True)
class MixerState:
    """All that a mixer remembers. Passed in and returned, never kept in the module or changed in place.

    N is the batch size, or the number of sequences when they are packed.

    Attributes:
        position: tokens seen so far [N], int64.
        recurrent: state of the recurrence [N, H, K, V], in the accumulation dtype.
        window: the last inputs of the convolution [N, width - 1, channels], the latest last.
        keys, values: what softmax attention keeps [N, S, H, head_dim]; the first `position` of the
            S places of a row count, the rest are zero (the last ones, where it has a window).
        stabiliser: m [N, ...], float64, where the recurrent state is kept as e^{-m} times itself.
        angle: rotations accumulated so far [N, ...], float64, where they depend on the input.
    """

    position: Tensor
    recurrent: Tensor | None = None
    window: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    stabiliser: Tensor | None = None
    angle: Tensor | None = None

    def detach(self) -> MixerState:
        """The same numbers without their history, for backpropagation that is cut between pieces."""
        parts = (getattr(self, f.name) for f in fields(self))
        return MixerState(*(None if p is None else p.detach() for p in parts))  # type: ignore[arg-type]


# Programs of torch.export take states and return them, and files may hold them: they are tensors and no more.
torch.export.register_dataclass(MixerState, serialized_type_name="mixerzoo.MixerState")
torch.serialization.add_safe_globals([MixerState])


class Tokens(NamedTuple):
    """Where the tokens of a call stand: x [B, T, d_model] belongs to N sequences."""

    position: Tensor  # [B, T], how many tokens of its sequence came before this one
    lengths: Tensor | None  # [N], tokens each sequence gains; None: all T
    valid: Tensor | None = None  # [B, T], a right-padding mask; None: all valid
    cu_seqlens: Tensor | None = None  # [N + 1] when packed
    segment: Tensor | None = None  # [T] when packed: the sequence each token belongs to
    inplace: bool = False  # whether the memory of the state may be written to

    def advance(self, position: Tensor) -> Tensor:
        return position + (self.position.shape[1] if self.lengths is None else self.lengths)

    def cut(self, i: int, j: int) -> Tokens:
        """Those of places i..j of every row."""
        lengths = None if self.lengths is None else (self.lengths - i).clamp(0, j - i)
        valid = None if self.valid is None else self.valid[:, i:j]
        return self._replace(position=self.position[:, i:j], lengths=lengths, valid=valid)


class Core(NamedTuple):
    """The arguments that a mixer hands to the core, and what its readout needs besides."""

    q: Tensor  # [B, T, Hq, K]
    k: Tensor  # [B, T, Hk, K]
    v: Tensor  # [B, T, H, V]
    log_decay: Tensor | OuterDecay | None = None
    log_decay_v: Tensor | None = None
    scale: float = 1.0
    beta: Tensor | None = None
    erase: tuple[Tensor, Tensor] | None = None
    read: str = "after"
    initial: Tensor | None = None  # what the recurrence starts from, if not from state.recurrent
    rest: tuple[Tensor, ...] = ()
    # Of the state after these tokens:
    factor: Tensor | None = None  # what the recurrent state is multiplied by
    window: Tensor | None = None
    stabiliser: Tensor | None = None
    angle: Tensor | None = None


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """At least float32: the dtype of states, log-decays and norms."""
    return dtype if dtype == torch.float64 else torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in this dtype. (Where it has it already, `Tensor.to` takes half as long as an operation.)"""
    return x if x.dtype == dtype else x.to(dtype)


def head_count(d_model: int, num_heads: int | None) -> int:
    """num_heads, or by default the most that divide d_model up to max(4, d_model / 64)."""
    if num_heads is None:
        most = max(4, d_model // 64)
        return next(h for h in range(min(most, d_model), 0, -1) if d_model % h == 0)
    return whole("num_heads", num_heads, ", or None")


def head_size(d_model: int, num_heads: int, head_dim: int | None = None, written: str = "d_model") -> int:
    """head_dim, or by default d_model / num_heads; `written` is what an error calls d_model."""
    if head_dim is not None:
        return whole("head_dim", head_dim, ", or None")
    if d_model % num_heads:
        raise ValueError(
            f"num_heads is {num_heads}; accepted: a divisor of {written} = {d_model}, or give head_dim"
        )
    return d_model // num_heads


def same_shape(
    name: str, x: object, written: str, sizes: tuple[int | None, ...], device: torch.device
) -> None:
    """x is a tensor of these sizes, None standing for any."""
    x = checks.tensor(name, x, written)
    if x.ndim != len(sizes) or any(n is not None and n != m for n, m in zip(sizes, x.shape, strict=True)):
        # Written out only here: a compiled graph with free sizes cannot put them into words.
        shown = "[" + ", ".join("any" if n is None else str(n) for n in sizes) + "]"
        raise ValueError(f"{name} has shape {checks.shape(x)}; accepted: {written} = {shown}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}; accepted: the device of x, {device}")


def fits(x: object, sizes: tuple[int, ...], device: torch.device) -> bool:
    """Whether x is what it mostly is, an ordinary tensor of these sizes on this device: what a token takes is
    counted in microseconds. False says nothing."""
    return type(x) is Tensor and x.shape == sizes and x.device == device


def state_part(
    name: str, x: object, written: str, sizes: tuple[int | None, ...], device: torch.device
) -> Tensor:
    """x is a floating tensor of these sizes."""
    checks.floating(name, checks.tensor(name, x, written))
    same_shape(name, x, written, sizes, device)
    assert isinstance(x, Tensor)
    return x


class Mixer(nn.Module):
    """A layer that mixes tokens in time: x [B, T, d_model] to y [B, T, d_model].

    If it is causal, as all are but `Bidirectional`, `forward` over a whole sequence, `forward` over
    consecutive pieces of it with the state carried on, and `step` token by token are the same function, to
    rounding.

    Attributes:
        d_model: width of x and y.
        backend: "auto", "torch", "triton" or "numba", passed on to the core.
        forms: what `forward` takes for `form`.
        causal: whether outputs depend on no later input. What is not causal has no state and no step.
    """

    forms: tuple[str, ...] = FORMS
    causal: bool = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = whole("d_model", d_model)
        self.backend = "auto"

    # ---------------------------------------------------------------- what a mixer defines

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        """The state before the first token; dtype is that of x."""
        raise NotImplementedError

    def check_state(self, state: MixerState, n: int, device: torch.device) -> None:
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: MixerState, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, MixerState]:
        """The mixer itself, with padding on the right only. form None: one token, by the core's `step`."""
        raise NotImplementedError

    def attention_map(self, x: Tensor) -> Tensor:
        """How much the output at t takes from the token at s: [B, heads, T, T], row t, column s."""
        raise NotImplementedError

    # ---------------------------------------------------------------- what every mixer does

    def forward(
        self,
        x: Tensor,
        state: MixerState | None = None,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        form: str = "auto",
    ) -> tuple[Tensor, MixerState]:
        """A sequence, or the next piece of one.

        Args:
            x: inputs [B, T, d_model]. T = 0 returns the state unchanged.
            state: what an earlier call returned; None at the start.
            mask: [B, T] bool, False where a token is padding, anywhere in a row. Padding changes
                nothing: its inputs are not looked at, its outputs are 0, the state skips it.
            cu_seqlens: packed sequences: int offsets [N + 1] from 0 to T, with B = 1. Each is a
                sequence of its own, with its own row of the state. Not together with mask.
            form: of the core, see `mixerzoo.kernels.recurrence`; mixers with a delta rule have no "scan".

        Returns:
            y [B, T, d_model], and the state after the last token of every sequence.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what is accepted.
        """
        self._check_input("x", x, 3, "[B, T, d_model]")
        checks.one_of("form", form, self.forms)
        B, T, _ = x.shape
        n = B
        if mask is not None:
            checks.valid_mask("mask", mask, (B, T), "[B, T]", x.device)
        if cu_seqlens is not None:
            if mask is not None:
                raise ValueError(
                    "mask was given together with cu_seqlens; accepted: one of the two "
                    "(leave padding out of packed sequences)"
                )
            cu_seqlens = checks.seqlens(cu_seqlens, x)
            if checks.checking(cu_seqlens):
                checks.seqlen_values(cu_seqlens.tolist(), T)
            n = cu_seqlens.shape[0] - 1
        state = self._starting_state(state, n, x)
        if T == 0:
            return torch.zeros_like(x), state

        steps = torch.arange(T, device=x.device)
        if cu_seqlens is not None:
            offsets = cu_seqlens.long()
            segment = torch.searchsorted(offsets[1:].contiguous(), steps, right=True).clamp(max=n - 1)
            position = state.position[segment] + steps - offsets[segment]
            tokens = Tokens(position[None], offsets.diff(), None, cu_seqlens, segment)
            return self.mix(x, state, tokens, form)
        position = state.position[:, None] + steps
        if mask is None:
            return self._mix_in_pieces(x, state, Tokens(position, None), form)

        # A stable sort moves the valid tokens of a row to its front, in their order.
        order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[..., None]
        lengths = mask.sum(1)
        valid = steps < lengths[:, None]
        x = _keep(mask, x).gather(1, order.expand_as(x))
        y, state = self._mix_in_pieces(x, state, Tokens(position, lengths, valid), form)
        y = _keep(valid, y)
        return torch.zeros_like(y).scatter(1, order.expand_as(y), y), state

    def _mix_in_pieces(
        self, x: Tensor, state: MixerState, tokens: Tokens, form: str
    ) -> tuple[Tensor, MixerState]:
        """`mix`, and of a long sequence on a CPU, where there is no gradient, so many tokens at a time that
        what is computed on the way stays small: large tensors leave the caches, and come in fresh pages."""
        B, T, width = x.shape
        plain = type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if torch.is_grad_enabled() or not plain or not self.causal or form == "parallel":
            return self.mix(x, state, tokens, form)
        if state.recurrent is None or state.keys is not None:
            return self.mix(x, state, tokens, form)
        _, heads, K, V = state.recurrent.shape
        widest = max(1, B * max(width, heads * K, heads * V))
        size = max(FEWEST, PIECE // widest) // WHOLE_CHUNKS * WHOLE_CHUNKS
        if size >= T:
            return self.mix(x, state, tokens, form)
        y: Tensor | None = None
        for i in range(0, T, size):
            j = min(i + size, T)
            piece, state = self.mix(x[:, i:j], state, tokens.cut(i, j), form)
            y = new(piece, B, T, piece.shape[-1]) if y is None else y
            y[:, i:j] = piece
        assert y is not None
        return y, state

    def step(
        self,
        x_t: Tensor,
        state: MixerState | None = None,
        mask: Tensor | None = None,
        inplace: bool = False,
    ) -> tuple[Tensor, MixerState]:
        """The next token.

        Args:
            x_t: inputs [B, d_model].
            state: what an earlier call returned; None at the start.
            mask: [B] bool; a row where it is False has no token: output 0, state as it was.
            inplace: the state given is used up: its memory may be written to, which saves softmax
                attention a copy of its keys and values. Without gradients only.

        Returns:
            y_t [B, d_model], and the state after the token.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what is accepted.
        """
        self._check_input("x_t", x_t, 2, "[B, d_model]")
        if flag("inplace", inplace) and torch.is_grad_enabled():
            raise ValueError(
                "inplace is True where gradients are recorded; accepted: False, or a call under "
                "torch.no_grad()"
            )
        state = self._starting_state(state, x_t.shape[0], x_t)
        position = state.position.unsqueeze(1)
        if mask is None:
            tokens = Tokens(position, None, inplace=inplace)
            y, state = self.mix(x_t.unsqueeze(1), state, tokens, None)
            return y.select(1, 0), state
        checks.valid_mask("mask", mask, (x_t.shape[0],), "[B]", x_t.device)
        valid = mask[:, None]
        tokens = Tokens(position, mask.long(), valid, inplace=inplace)
        y, state = self.mix(_keep(valid, x_t[:, None]), state, tokens, None)
        return _keep(valid, y)[:, 0], state

    def _check_input(self, name: str, x: Tensor, ndim: int, written: str) -> None:
        # The first projection speaks for all: gates and decays may be kept in a wider dtype.
        linear = _first_linear(self)
        weight = None if linear is None else linear.weight
        if weight is not None and type(x) is Tensor and x.ndim == ndim and x.shape[-1] == self.d_model:
            alike = x.dtype == weight.dtype and x.device == weight.device
            if alike and x.dtype in checks.FLOATS:
                return
        accepted = f"{written} with d_model = {self.d_model}"
        x = checks.tensor(name, x, accepted)
        checks.floating(name, x)
        if x.ndim != ndim or x.shape[-1] != self.d_model:
            raise ValueError(f"{name} has shape {checks.shape(x)}; accepted: {accepted}")
        if weight is None:
            return
        if x.device != weight.device:
            raise ValueError(
                f"{name} is on {x.device}; accepted: the device of the mixer's parameters, {weight.device}"
            )
        # Quantised weights take the dtypes that their own layer says; autocast leaves float64 alone.
        if x.dtype == weight.dtype or weight.dtype not in checks.FLOATS:
            return
        if torch.float64 in (x.dtype, weight.dtype) or not torch.is_autocast_enabled(x.device.type):
            raise TypeError(
                f"{name} has dtype {x.dtype}; accepted: the dtype of the mixer's parameters, {weight.dtype}"
            )

    def _starting_state(self, state: MixerState | None, n: int, x: Tensor) -> MixerState:
        if state is None:
            return self.initial_state(n, x.device, x.dtype)
        if not isinstance(state, MixerState):
            raise TypeError(f"state is {type(state).__name__}; accepted: a MixerState, or None at the start")
        if not fits(state.position, (n,), x.device):
            same_shape("state.position", state.position, "[N]", (n,), x.device)
        if state.position.dtype != torch.int64:
            raise TypeError(f"state.position has dtype {state.position.dtype}; accepted: int64")
        self.check_state(state, n, x.device)
        return state


def _first_linear(module: nn.Module) -> nn.Linear | None:
    """The first of module.modules() that is one."""
    if isinstance(module, nn.Linear):
        return module
    for m in module._modules.values():
        found = None if m is None else _first_linear(m)
        if found is not None:
            return found
    return None


def _keep(valid: Tensor, x: Tensor) -> Tensor:
    """x where valid, 0 elsewhere, whatever x holds there (a product would let NaN through)."""
    return torch.where(valid[..., None], x, torch.zeros_like(x))


class RecurrentMixer(Mixer):
    """A mixer that is the core recurrence between a gate map and a readout.

    Attributes:
        state_shape: (H, K, V) of the recurrent state.
        window_shape: (width - 1, channels) of the convolution window, or None.
        stabiliser_shape, angle_shape: of one sequence's `stabiliser` and `angle`, or None.
        map_heads: how many maps `attention_map` returns at most; None: one for each head.
    """

    state_shape: tuple[int, int, int]
    window_shape: tuple[int, int] | None = None
    stabiliser_shape: tuple[int, ...] | None = None
    angle_shape: tuple[int, ...] | None = None
    map_heads: int | None = None

    def operands(self, x: Tensor, state: MixerState, tokens: Tokens) -> Core:
        """The gate map: from inputs [B, T, d_model] to the arguments of the core."""
        raise NotImplementedError

    def readout(self, o: Tensor, x: Tensor, core: Core) -> Tensor:
        """From the core's outputs [B, T, H, V] to y [B, T, d_model]."""
        raise NotImplementedError

    def mix(
        self, x: Tensor, state: MixerState, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, MixerState]:
        core = self.operands(x, state, tokens)
        o, recurrent = self.recur(core, state.recurrent, tokens, form)
        y = self.readout(o, x, core)
        return y, MixerState(
            tokens.advance(state.position),
            recurrent if core.factor is None else recurrent * core.factor,
            core.window,
            stabiliser=core.stabiliser,
            angle=core.angle,
        )

    def recur(
        self, core: Core, recurrent: Tensor | None, tokens: Tokens, form: str | None
    ) -> tuple[Tensor, Tensor]:
        """The core between gate map and readout: outputs [B, T, H, V], and the state after them."""
        # Under autocast the maps of q, k and v may end in different dtypes.
        v, dtype = core.v, core.v.dtype
        q, k = cast(core.q, dtype), cast(core.k, dtype)
        la, lb, beta, erase = core.log_decay, core.log_decay_v, core.beta, core.erase
        initial = recurrent if core.initial is None else core.initial
        if erase is not None:
            erase = (erase[0].to(dtype), erase[1].to(dtype))
        if form is None:
            la = OuterDecay(la.dt[:, 0], la.A) if isinstance(la, OuterDecay) else _first(la, 1)
            o, recurrent = step(
                q.select(1, 0),
                k.select(1, 0),
                v.select(1, 0),
                la,
                _first(lb, 2),
                beta_t=_first(beta, 1),
                erase_t=None if erase is None else (erase[0][:, 0], erase[1][:, 0]),
                state=initial,
                scale=core.scale,
                read=core.read,
                mask=None if tokens.valid is None else tokens.valid[:, 0],
                backend="torch" if self.backend == "torch" else "auto",
            )
            return o.unsqueeze(1), recurrent
        return recurrence(
            q,
            k,
            v,
            la,
            lb,
            beta=beta,
            erase=erase,
            initial_state=initial,
            scale=core.scale,
            read=core.read,
            cu_seqlens=tokens.cu_seqlens,
            mask=tokens.valid,
            form=form,
            backend=self.backend,
        )

    def initial_state(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> MixerState:
        def full(shape: tuple[int, ...] | None, dtype: torch.dtype, value: float = 0.0) -> Tensor | None:
            if shape is None:
                return None
            return torch.full((batch_size, *shape), value, device=device, dtype=dtype)

        acc = accumulation(dtype)
        return MixerState(
            torch.zeros(batch_size, device=device, dtype=torch.int64),
            full(self.state_shape, acc),
            full(self.window_shape, dtype),
            stabiliser=full(self.stabiliser_shape, torch.float64, -torch.inf),
            angle=full(self.angle_shape, torch.float64),
        )

    def check_state(self, state: MixerState, n: int, device: torch.device) -> None:
        for name, written, part, shape in (
            ("recurrent", "[N, H, K, V]", state.recurrent, self.state_shape),
            ("window", "[N, width - 1, channels]", state.window, self.window_shape),
            ("stabiliser", "[N, ...]", state.stabiliser, self.stabiliser_shape),
            ("angle", "[N, ...]", state.angle, self.angle_shape),
        ):
            if shape is None:
                continue
            sizes = (n, *shape)
            if not (fits(part, sizes, device) and part.dtype in checks.FLOATS):  # type: ignore[union-attr]
                state_part(f"state.{name}", part, written, sizes, device)

    @torch.no_grad()
    def attention_map(self, x: Tensor) -> Tensor:
        """The linear map from the core's values to its outputs: [B, heads, T, T], row t, column s.

        What precedes the values and follows the outputs (convolutions, rotations of the values,
        norms, gates) is not in it; normalisers and shares of the current token are, by `weigh`. Where
        values decay each by its own rate, the mean over their channels; where there are more than
        `map_heads` heads, means over contiguous groups.
        """
        self._check_input("x", x, 3, "[B, T, d_model]")
        B, T, _ = x.shape
        if T == 0:
            return x.new_zeros(B, self._maps(), 0, 0)
        state = self._starting_state(None, B, x)
        position = torch.arange(T, device=x.device).expand(B, T)
        return self.core_map(self.operands(x, state, Tokens(position, None)))

    def core_map(self, core: Core) -> Tensor:
        """The map of a core: [B, heads, T, T]."""
        B, T, H, V = core.v.shape
        q, k, la = core.q.to(core.v.dtype), core.k.to(core.v.dtype), core.log_decay
        if core.log_decay_v is not None:
            # Every value channel becomes a head, its decay one over keys.
            if la is not None:
                raise NotImplementedError("a map of decays over both keys and values")
            q, k = (z.repeat_interleave(H * V // z.shape[2], 2) for z in (q, k))
            la = core.log_decay_v.expand(B, T, H, V).reshape(B, T, H * V)
            H = H * V
        # With the unit vectors as values, the outputs are the weights.
        eye = torch.eye(T, device=q.device, dtype=q.dtype)[None, :, None].expand(B, T, H, T)
        erase = None if core.erase is None else (core.erase[0].to(q.dtype), core.erase[1].to(q.dtype))
        o, _ = recurrence(q, k, eye, la, beta=core.beta, erase=erase, scale=core.scale, read=core.read)
        weights = self.weigh(o.transpose(1, 2), core)
        return weights.reshape(B, self._maps(), -1, T, T).mean(2)

    def _maps(self) -> int:
        heads = self.state_shape[0]
        if self.map_heads is None:
            return heads
        return next(h for h in range(min(self.map_heads, heads), 0, -1) if heads % h == 0)

    def weigh(self, weights: Tensor, core: Core) -> Tensor:
        """What the readout makes of the core's weights [B, H, T, T], or [B, H V, T, T] where values decay
        each by its own rate: a normaliser, or a share of the current token outside the core."""
        return weights


def _first(x: Tensor | None, constant: int) -> Tensor | None:
    """The only step of a log-decay, unless it is constant in time."""
    return x if x is None or x.ndim == constant else x.select(1, 0)
