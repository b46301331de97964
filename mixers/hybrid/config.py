"""What a hybrid is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..arguments import flag, number, shown, whole
from ..registry import REGISTRY

LINEAR, SOFTMAX = "linear", "softmax"  # the two kinds of layers


@dataclass(frozen=True)
class HybridConfig:
    """The sizes and choices of a `HybridLM`.

    Attributes:
        vocab_size: tokens are 0 … vocab_size - 1.
        d_model: width of the residual stream.
        num_layers: blocks, each a mixer and an MLP.
        period: layers period - 1, 2 · period - 1, … mix by softmax attention, the others linearly.
        layer_types: "linear" or "softmax" for every layer, in the place of `period`.
        linear, softmax: the mixers of the two kinds, by name, any of the registry.
        linear_options, softmax_options: of their classes. `layer_idx` and `num_layers` are filled in
            where a class has them.
        mlp_dim: inner width of the SwiGLU; by default 8/3 d_model, rounded up to a multiple of 8.
        num_experts: SwiGLUs that a router chooses from for each token, or None: one, and no router.
        experts_per_token: how many it chooses.
        norm_eps: of the RMSNorms before the mixer, the MLP and the head.
        tied: the head is the embedding.
        postnorm: the residual connections start behind the norms, as in MiniMax-01, not before them.
        linear_alpha, softmax_alpha, mlp_alpha: factors of the residual.
        linear_beta, softmax_beta, mlp_beta: factors of what is added to it.
        init_std: deviation of the normal initial weights of embedding, head and MLPs (a mixer's are
            its own affair).

    Raises:
        TypeError: an attribute of another type.
        ValueError: an attribute out of range.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    period: int = 8
    layer_types: tuple[str, ...] | None = None
    linear: str = "lightning"
    linear_options: Mapping[str, Any] = field(default_factory=dict)
    softmax: str = "softmax"
    softmax_options: Mapping[str, Any] = field(default_factory=dict)
    mlp_dim: int | None = None
    num_experts: int | None = None
    experts_per_token: int = 2
    norm_eps: float = 1e-5
    tied: bool = False
    postnorm: bool = False
    linear_alpha: float = 1.0
    linear_beta: float = 1.0
    softmax_alpha: float = 1.0
    softmax_beta: float = 1.0
    mlp_alpha: float = 1.0
    mlp_beta: float = 1.0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "period", "experts_per_token"):
            whole(name, getattr(self, name))
        for name in ("mlp_dim", "num_experts"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), ", or None")
        for name in ("norm_eps", "init_std"):
            number(name, getattr(self, name), 0, above=True)
        for kind in ("linear", "softmax", "mlp"):
            for name in (f"{kind}_alpha", f"{kind}_beta"):
                number(name, getattr(self, name), 0)
        for name in ("tied", "postnorm"):
            flag(name, getattr(self, name))
        if self.num_experts is not None and self.experts_per_token > self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}; accepted: up to num_experts = "
                f"{self.num_experts}"
            )
        for name in ("linear", "softmax"):
            known, chosen, options = (
                ", ".join(map(repr, REGISTRY)),
                getattr(self, name),
                getattr(self, f"{name}_options"),
            )
            if not isinstance(chosen, str):
                raise TypeError(f"{name} is {shown(chosen)}; accepted: {known}")
            if chosen not in REGISTRY:
                raise ValueError(f"{name} is {chosen!r}; accepted: {known}")
            if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
                raise TypeError(f"{name}_options is {shown(options)}; accepted: a dict of options by name")
            object.__setattr__(self, f"{name}_options", dict(options))
        self._check_layer_types()

    def _check_layer_types(self) -> None:
        types = self.layer_types
        if types is None:
            return
        accepted = f"{LINEAR!r} or {SOFTMAX!r} for each of num_layers = {self.num_layers}, or None"
        if isinstance(types, str) or not isinstance(types, (tuple, list)):
            raise TypeError(f"layer_types is {shown(types)}; accepted: a tuple, {accepted}")
        for layer_type in types:
            if layer_type not in (LINEAR, SOFTMAX):
                raise ValueError(f"layer_types has {shown(layer_type)}; accepted: {accepted}")
        if len(types) != self.num_layers:
            raise ValueError(f"layer_types has {len(types)} entries; accepted: {accepted}")
        object.__setattr__(self, "layer_types", tuple(types))

    def types(self) -> tuple[str, ...]:
        """ "linear" or "softmax" for every layer."""
        if self.layer_types is not None:
            return self.layer_types
        return tuple(
            SOFTMAX if i % self.period == self.period - 1 else LINEAR for i in range(self.num_layers)
        )

    def mlp_width(self) -> int:
        """mlp_dim, or its default."""
        return -(-self.d_model // 3) * 8 if self.mlp_dim is None else self.mlp_dim

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HybridConfig:
        """From what `to_dict` gave; a name that is not an attribute is an error."""
        names = [f.name for f in fields(cls)]
        unknown = [name for name in values if name not in names]
        if unknown:
            raise ValueError(f"config has {unknown[0]!r}; accepted: {', '.join(names)}")
        required = ("vocab_size", "d_model", "num_layers")
        missing = [name for name in required if name not in values]
        if missing:
            raise ValueError(f"config lacks {missing[0]!r}; accepted: at least {', '.join(required)}")
        return cls(**values)
