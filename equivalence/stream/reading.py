"""A model reads a text in pieces, and all that it remembers is a state of constant size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...mixers import HybridConfig, HybridLM
from ...mixers.base import MixerState
from ...mixers.hybrid import HybridState
from ...mixers.hybrid.model import place
from ...mixers.registry import REGISTRY

HYBRID = "hybrid"  # lightning attention, and in the last of every `layers` softmax attention with a window
MIXERS = (*(name for name, entry in REGISTRY.items() if entry.causal), HYBRID)


@dataclass(frozen=True)
class Plan:
    """What is read, by which model, in which pieces: what a saved state is continued with."""

    mixer: str = "lightning"
    piece: int = 4096
    d_model: int = 64
    layers: int = 2
    window: int = 256
    seed: int = 0
    text: str = ""  # the digest of the text


def model_of(plan: Plan) -> HybridLM:
    """A byte-level model with the random weights of the plan's seed."""
    hybrid = plan.mixer == HYBRID
    linear = "lightning" if hybrid else plan.mixer
    windowed = {"window": plan.window}
    own = {} if hybrid else place(linear, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        return HybridLM(
            HybridConfig(
                vocab_size=256,
                d_model=plan.d_model,
                num_layers=plan.layers,
                period=plan.layers if hybrid else plan.layers + 1,
                linear=linear,
                linear_options=windowed if linear == "softmax" else own,
                softmax_options=windowed,
                tied=True,
                init_std=plan.d_model**-0.5,
            )
        ).eval()


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


class Reader:
    """Reads a text from its beginning, again and again; token n is byte n modulo its length."""

    def __init__(self, plan: Plan, text: bytes) -> None:
        self.plan = replace(plan, text=digest(text))
        self.model = model_of(plan)
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
        self.state: HybridState | None = None
        self.position = 0
        self.logits: Tensor | None = None  # after the last token

    def ids(self, start: int, stop: int) -> Tensor:
        return self.text[torch.arange(start, stop) % len(self.text)][None]

    @torch.no_grad()
    def advance(self, tokens: int) -> None:
        """Reads the next tokens."""
        piece = self.ids(self.position, self.position + tokens)
        self.logits, self.state = self.model.prefill(piece, self.state)
        self.position += tokens

    def tensors(self) -> dict[str, Tensor]:
        """The state by name."""
        layers = () if self.state is None else self.state.layers
        return {
            f"{i}.{f.name}": x
            for i, layer in enumerate(layers)
            for f in fields(MixerState)
            if (x := getattr(layer, f.name)) is not None
        }

    def fingerprint(self) -> str:
        """Of all bits of the state."""
        h = hashlib.sha256()
        for name, x in sorted(self.tensors().items()):
            h.update(name.encode())
            h.update(x.contiguous().numpy().tobytes())
        return h.hexdigest()[:16]


def save(reader: Reader, file: Path) -> None:
    """The state and what it belongs to, in place of what the file had, or not at all."""
    tensors = {name: x.contiguous() for name, x in reader.tensors().items()}
    about = {"plan": json.dumps(asdict(reader.plan)), "position": str(reader.position)}
    beside = file.with_name(file.name + ".part")
    save_file(tensors, beside, metadata=about)
    beside.replace(file)


def resume(reader: Reader, file: Path) -> None:
    """A reader goes on where another was saved.

    Raises:
        ValueError: the file is none of these, or of another plan; the message says in what.
    """
    try:
        with safe_open(file, framework="pt") as saved:
            about: dict[str, str] = saved.metadata() or {}
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        plan: dict[str, Any] = json.loads(about["plan"])
        position = int(about["position"])
    except Exception as e:
        raise ValueError(f"--state is {file}; accepted: a file that this command wrote ({e})") from e
    own = asdict(reader.plan)
    for name, value in own.items():
        if plan.get(name) != value:
            raise ValueError(
                f"--state is {file}, of a run with {name} = {plan.get(name)!r}; accepted: one with "
                f"{name} = {value!r}, or another file"
            )
    names = [f.name for f in fields(MixerState)]
    reader.state = HybridState(
        tuple(
            MixerState(**{n: tensors[f"{i}.{n}"] for n in names if f"{i}.{n}" in tensors})
            for i in range(reader.plan.layers)
        )
    )
    reader.position = position


def difference(one: Reader, other: Reader) -> float:
    """The largest difference of two states, each tensor's relative to its largest number."""
    worst = 0.0
    theirs = other.tensors()
    for name, x in one.tensors().items():
        scale = max(float(x.double().abs().nan_to_num(posinf=0.0).max()) if x.numel() else 0.0, 1e-30)
        if x.numel():
            worst = max(worst, float((x.double() - theirs[name].double()).abs().max()) / scale)
    return worst
