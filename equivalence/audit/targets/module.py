"""A torch module as a target: x [B, T, width] to outputs, with whatever it keeps between calls."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ....mixers import MixerState
from ..examine import Target
from ..subject import Case, Extreme, Inputs, Subject, Unsupported
from .load import TargetError, importing
from .measuring import Measuring, NoState, found_at, outside, tensor_at
from .snippets import Calls, snippet

SEED = 0
WIDTHS = ("d_model", "hidden_size", "dim", "width", "embed_dim", "input_size", "n_embd", "channels", "d")
HEADS = ("num_heads", "n_heads", "heads", "nhead", "n_head")
STATES = (
    "state",
    "initial_state",
    "states",
    "hidden",
    "hidden_state",
    "hx",
    "h0",
    "cache",
    "past_key_values",
)
MASKS = {"mask": "token", "attention_mask": "token", "padding_mask": "padding", "key_padding_mask": "padding"}
OFFSETS = ("cu_seqlens", "cu_seq_lens", "offsets")
RETURNING = ("return_state", "output_final_state", "use_cache")
WIDTH = 8


@dataclass(frozen=True)
class ModuleAdapter:
    """How a module is made and called. All of it is data.

    Attributes:
        arguments: of the class, or of the function that makes the module.
        width: of the inputs.
        layout: of the inputs and outputs: "B T D" or "T B D".
        constants: further arguments of every call.
        state: the parameter of `forward` that takes the state, or None if there is none.
        output: the way to the outputs in what it returns, (0,) for the first of a tuple, () for all of it.
        after: the way to the state in what it returns.
        mask: the parameter that takes a mask.
        mask_means: what True stands for in it: "token" or "padding".
        mask_covers: "piece", or "row": everything since the beginning.
        cu_seqlens: the parameter that takes the offsets of packed sequences [N + 1], int64.
        step: the method that computes single tokens, if another than `forward`; it takes the state second.
        step_layout: of its input and output: "B D" or "B T D".
        meaning: from a state to the tensors it stands for, where it holds them scaled or rotated.
        random: whether every parameter is moved to a random place: fresh ones are often 0 or 1.
        extremes: by what they are, values of parameters by their names that bring decays to their ends.
        multiple, lengths, dtypes, tolerance, unsupported, guessed: as those of an `Adapter`.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    width: int = WIDTH
    layout: str = "B T D"
    constants: Mapping[str, Any] = field(default_factory=dict)
    state: str | None = None
    output: tuple[int | str, ...] = (0,)
    after: tuple[int | str, ...] = (1,)
    mask: str | None = None
    mask_means: str = "token"
    mask_covers: str = "piece"
    cu_seqlens: str | None = None
    step: str | None = None
    step_layout: str = "B D"
    meaning: Callable[[Any], Mapping[str, Tensor]] | None = None
    random: bool = True
    extremes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    multiple: int = 1
    lengths: tuple[int, ...] = (3, 5, 9, 20)
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16")
    tolerance: float | None = None
    unsupported: Mapping[str, str] = field(default_factory=dict)
    guessed: str = ""

    def check(self, module: nn.Module, called: str) -> None:
        """Whether it fits.

        Raises:
            TargetError: naming what does not, and what is accepted.
        """
        parameters = inspect.signature(module.forward).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in (*self.constants, *filter(None, (self.state, self.mask, self.cu_seqlens))):
            if name not in parameters and not anything:
                raise TargetError(
                    f"the adapter gives {called}.forward an argument {name!r}; "
                    f"accepted: {', '.join(parameters)}"
                )
        if self.step is not None and not callable(getattr(module, self.step, None)):
            raise TargetError(f"step is {self.step!r}, which {called} has not; accepted: one of its methods")
        names = dict(module.named_parameters()) | dict(module.named_buffers())
        for label, values in self.extremes.items():
            for name in values:
                if name not in names:
                    raise TargetError(
                        f"extremes[{label!r}] has {name!r}; accepted: {', '.join(names) or 'nothing'}"
                    )
        for what, value, accepted in (
            ("layout", self.layout, ("B T D", "T B D")),
            ("mask_means", self.mask_means, ("token", "padding")),
            ("mask_covers", self.mask_covers, ("piece", "row")),
            ("step_layout", self.step_layout, ("B D", "B T D")),
        ):
            if value not in accepted:
                raise TargetError(f"{what} is {value!r}; accepted: {' or '.join(map(repr, accepted))}")


class ModuleSubject(Measuring):
    """Calls of one module by its adapter.

    Args:
        name: of the target.
        module: it.
        adapter: how it is called.
        dtype: of inputs and weights.
        called: how its class is imported, for snippets; "" for a module that was there.
    """

    def __init__(
        self, name: str, module: nn.Module, adapter: ModuleAdapter, dtype: torch.dtype, called: str = ""
    ) -> None:
        self.name, self.module, self.adapter, self.dtype = name, module, adapter, dtype
        self.called = called
        self.unsupported, self.dtypes = outside(adapter.unsupported, adapter.dtypes), adapter.dtypes
        self.documented = adapter.tolerance
        self.multiple, self.lengths = adapter.multiple, adapter.lengths

    def inputs(self, rows: int, length: int, seed: int) -> Inputs:
        g = torch.Generator().manual_seed(seed)
        return {"x": torch.randn(rows, length, self.adapter.width, generator=g, dtype=torch.float64)}

    def tensors(self) -> dict[str, Tensor]:
        return {n: p for n, p in self.module.named_parameters() if p.is_floating_point()}

    def at(self, dtype: torch.dtype) -> ModuleSubject:
        found = self.precision(dtype)
        module = copy.deepcopy(self.module).to(dtype).to(found)
        return ModuleSubject(self.name, module, self.adapter, found, self.called)

    def run(
        self,
        inputs: Inputs,
        state: Any = None,
        mask: Tensor | None = None,
        sequences: tuple[int, ...] | None = None,
        keep: bool = True,
    ) -> tuple[Tensor, Any]:
        a, x = self.adapter, inputs["x"].to(self.dtype)
        T = x.shape[1]
        if T % a.multiple and not (T == 1 and a.step):
            raise Unsupported(f"it takes lengths that are multiples of {a.multiple}")
        if isinstance(state, NoState):
            raise Unsupported("its forward takes no state and returns none")
        masked = mask is not None and not bool((mask if a.mask_covers == "row" else mask[:, -T:]).all())
        if a.step and T == 1 and keep and not masked and sequences is None:
            given = x[:, 0] if a.step_layout == "B D" else x
            step = getattr(self.module, a.step)
            result = self.refusing(lambda: step(given) if state is None else step(given, state))
            y = tensor_at(result, a.output, "outputs")
            return (y[:, None] if a.step_layout == "B D" else y), self._after(result)
        options: dict[str, Any] = dict(a.constants)
        if state is not None:
            options[str(a.state)] = state
        if masked:
            assert mask is not None
            if a.mask is None:
                raise Unsupported("its forward takes no mask")
            covered = mask if a.mask_covers == "row" else mask[:, -T:]
            options[a.mask] = covered if a.mask_means == "token" else ~covered
        if sequences is not None:
            if a.cu_seqlens is None:
                raise Unsupported("its forward takes no packed sequences")
            options[a.cu_seqlens] = torch.tensor([0, *sequences]).cumsum(0)
        given = x if a.layout == "B T D" else x.transpose(0, 1)
        result = self.refusing(lambda: self.module(given, **options))
        y = tensor_at(result, a.output, "outputs")
        return (y if a.layout == "B T D" else y.transpose(0, 1)), self._after(result) if keep else None

    def _after(self, result: Any) -> Any:
        if self.adapter.state is None:
            return NoState()
        return found_at(result, self.adapter.after, "the state")

    def state_tensors(self, state: Any) -> dict[str, Tensor]:
        if isinstance(state, NoState):
            raise Unsupported("its forward takes no state and returns none")
        meaning = self.adapter.meaning
        parts = dict(_tensors("state", state)) if meaning is None else meaning(state)
        found = {n: x for n, x in parts.items() if x.is_floating_point()}
        if not found:
            raise Unsupported("its state holds no real numbers")
        return found

    def extremes(self) -> Iterator[Extreme]:
        if not self.adapter.extremes:
            raise Unsupported("nothing is known of its decays: the adapter has no extremes")
        for label, values in self.adapter.extremes.items():
            other = self.at(torch.float64)
            held = dict(other.module.named_parameters()) | dict(other.module.named_buffers())
            with torch.no_grad():
                for name, value in values.items():
                    held[name].fill_(value)
            yield Extreme(label, other, self.inputs(1, self.lengths[-1], 0))

    def snippet(self, case: Case) -> str:
        return snippet(_calls(self.called, self.adapter, case), case)

    def describe(self, case: Case) -> str:
        return f"width {self.adapter.width}"


def _tensors(name: str, x: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of anything, each with the way to it."""
    if isinstance(x, Tensor):
        yield name, x
    elif isinstance(x, Mapping):
        for key, value in x.items():
            yield from _tensors(f"{name}.{key}", value)
    elif isinstance(x, (list, tuple)):
        for i, value in enumerate(x):
            yield from _tensors(f"{name}.{i}", value)
    elif dataclasses.is_dataclass(x):
        for f in dataclasses.fields(x):
            yield from _tensors(f"{name}.{f.name}", getattr(x, f.name))
    elif hasattr(x, "__dict__"):
        yield from _tensors(name, vars(x))


def _calls(called: str, a: ModuleAdapter, case: Case) -> Calls | None:
    """How it is called, in a few lines."""
    if not called or case.property == "decay_extremes":
        return None
    line, name = importing(called)
    arguments = ", ".join(f"{n}={v!r}" for n, v in a.arguments.items())
    made = f"m = {name}({arguments}).double().eval().requires_grad_(False)"
    if a.random:
        size = "(0.5 if p.ndim < 2 else 0.5 * p.shape[-1] ** -0.5)"
        made += f"; [p.add_(torch.randn_like(p) * {size}) for p in m.parameters()]"
    options = "".join(f", {n}={v!r}" for n, v in a.constants.items())
    axis = a.layout.split().index("T")
    f = f"f = lambda x, **o: m(x{options}, **o)"
    if a.step:
        one = f"x.select({axis}, 0)" if a.step_layout == "B D" else "x"
        f += f"; g = lambda x, **o: m.{a.step}({one}, *o.values())"
    setup = [f"import torch; {line}; torch.manual_seed({SEED})", f"{made}; {f}"]
    sizes = {"B": case.rows, "T": case.length, "D": a.width}
    shape = ", ".join(str(sizes[n]) for n in a.layout.split())
    way = "".join(f"[{k!r}]" if isinstance(k, int) else f".{k}" for k in a.output)
    after = "".join(f"[{k!r}]" if isinstance(k, int) else f".{k}" for k in a.after)
    one_way = f"{way}.unsqueeze({axis})" if a.step and a.step_layout == "B D" else way
    mask = "mask" if a.mask_means == "token" else "~mask"
    return Calls(
        setup,
        f"torch.manual_seed({case.seed}); x = {{'x': torch.randn({shape}, dtype=torch.float64)}}",
        {"x": axis},
        (way, axis),
        None if a.state is None else f"{{{a.state!r}: r{after}}}",
        None if a.mask is None or a.mask_covers == "row" else (a.mask, mask),
        a.cu_seqlens,
        a.step is not None,
        one_way=one_way,
    )


# ---------------------------------------------------------------- what is not given is guessed


def guessed_arguments(factory: Callable[..., Any], called: str) -> dict[str, Any]:
    """A width and heads, by their usual names.

    Raises:
        TargetError: it needs others.
    """
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return {}
    found: dict[str, Any] = {}
    for p in parameters:
        if p.default is not p.empty or p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        if p.name in WIDTHS:
            found[p.name] = WIDTH
        elif p.name in HEADS:
            found[p.name] = 2
        else:
            raise TargetError(
                f"{called} needs {p.name!r}; accepted: a ModuleAdapter with it in its arguments "
                f"(guessed are {', '.join(WIDTHS + HEADS)})"
            )
    return found


def _widths(module: nn.Module, first: int) -> list[int]:
    """What the inputs' width may be: the one asked for, its own by their usual names, those of its maps."""
    own = (getattr(module, n, None) for n in WIDTHS)
    maps = (m.in_features for m in module.modules() if isinstance(m, nn.Linear))
    found = [w for w in (first, *own, *maps) if isinstance(w, int) and not isinstance(w, bool) and w > 0]
    return list(dict.fromkeys(found))


def guess(module: nn.Module, called: str, adapter: ModuleAdapter) -> ModuleAdapter:
    """What `forward` takes and returns, by the names of its parameters and a call.

    Raises:
        TargetError: the call raises.
    """
    parameters = inspect.signature(module.forward).parameters
    first = next(iter(parameters), None)
    state = next((n for n in STATES if n in parameters and n != first), None)
    mask = next((n for n in MASKS if n in parameters), None)
    constants = {n: True for n in RETURNING if n in parameters}
    dtype = next((p.dtype for p in module.parameters()), torch.float64)
    refused: Exception | None = None
    for width in _widths(module, adapter.width):
        x = torch.zeros(1, 3, width, dtype=dtype)
        try:
            with torch.no_grad():
                result = module(x, **constants)
            break
        except Exception as e:
            refused = refused or e
    else:
        raise TargetError(
            f"{called}.forward does not take x [B, T, {adapter.width}]: {type(refused).__name__}: {refused}; "
            "accepted: a ModuleAdapter that says how it is called"
        ) from refused
    several = isinstance(result, (tuple, list)) and len(result) > 1 and result[1] is not None
    state = state if several else None
    layout = _step_layout(module, x[:, :1]) if state else None
    found = replace(
        adapter,
        width=width,
        constants=constants,
        state=state,
        output=(0,) if isinstance(result, (tuple, list)) else (),
        meaning=_stands_for if several and isinstance(result[1], MixerState) else None,
        mask=mask,
        mask_means=MASKS[mask] if mask else "token",
        cu_seqlens=next((n for n in OFFSETS if n in parameters), None),
        step="step" if layout else None,
        step_layout=layout or "B D",
    )
    said = [f"{w} {getattr(found, w)}" for w in ("state", "mask", "cu_seqlens", "step") if getattr(found, w)]
    return replace(found, guessed=", ".join([f"inputs [B, T, {width}]", *said]))


def _step_layout(module: Any, x: Tensor) -> str | None:
    """What `step` takes, None if there is none that works."""
    for layout, given in (("B D", x[:, 0]), ("B T D", x)):
        try:
            result = module.step(given)
        except Exception:
            continue
        y = result[0] if isinstance(result, tuple) else result
        if isinstance(y, Tensor) and y.ndim == given.ndim:
            return layout
    return None


def _stands_for(state: MixerState) -> dict[str, Tensor]:
    """This package keeps what grows without bound as e^{-m} times itself; m has no gradient."""
    found = {n: x for n, x in _tensors("state", state) if not n.endswith(".stabiliser")}
    if state.stabiliser is not None and state.recurrent is not None:
        scale, S = state.stabiliser.exp(), state.recurrent
        if scale.shape[1] == S.shape[1]:  # one for each head
            found["state.recurrent"] = scale[..., None, None] * S
        else:  # one for each channel, of sums and of their weights
            found["state.recurrent"] = torch.cat([scale, scale], -1)[:, None, None] * S
    return found


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter moved to a random place, by torch's generator."""
    with torch.no_grad():
        for p in module.parameters():
            if p.is_floating_point():
                p.add_(torch.randn_like(p) * (0.5 if p.ndim < 2 else 0.5 * p.shape[-1] ** -0.5))
    return module


def _made(factory: Callable[..., Any], text: str, arguments: Mapping[str, Any]) -> nn.Module:
    shown = ", ".join(f"{n}={v!r}" for n, v in arguments.items())
    try:
        module = factory(**arguments)
    except Exception as e:
        raise TargetError(f"{text}({shown}) raises {type(e).__name__}: {e}") from e
    if not isinstance(module, nn.Module):
        raise TargetError(f"{text}({shown}) is {type(module).__name__}; accepted: a torch.nn.Module")
    return module


def module_target(text: str, found: Any, adapter: ModuleAdapter | None = None) -> Target:
    """A target out of a module, its class, or a function that makes it.

    Raises:
        TargetError: it cannot be made, or the adapter does not fit it.
    """
    if adapter is not None and not isinstance(adapter, ModuleAdapter):
        raise TargetError(f"ADAPTER is {type(adapter).__name__}; accepted: a ModuleAdapter, for a module")
    given = adapter or ModuleAdapter()
    if not isinstance(found, nn.Module):
        given = replace(given, arguments=given.arguments if adapter else guessed_arguments(found, text))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = copy.deepcopy(found) if isinstance(found, nn.Module) else _made(found, text, given.arguments)
        module = module.double().eval().requires_grad_(False)
        if given.random:
            randomised(module)
    if adapter is None:
        given = guess(module, text, given)
    given.check(module, text)
    called = "" if isinstance(found, nn.Module) else text
    subject = ModuleSubject(text, module, given, torch.float64, called)
    subject = subject if "float64" in given.dtypes else subject.at(torch.float64)

    def subjects(property: str) -> Sequence[Subject]:
        return [subject]

    return Target(text, subjects, given.guessed)
