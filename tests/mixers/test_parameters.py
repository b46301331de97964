"""The options of every mixer and what it holds by default, as parameters.txt has them: what code that builds
mixers and weights that were saved rely on.

Print it anew with `python tests/mixers/test_parameters.py`, and look at what changed.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mixerzoo.mixers import REGISTRY, HybridConfig, build

FILE = Path(__file__).with_name("parameters.txt")


def described(name: str, d_model: int = 36) -> str:
    """Options with their defaults; sizes of parameters, and of a sequence's state where it has one; how many
    maps there are."""
    options = inspect.signature(REGISTRY[name].factory).parameters.values()
    shown = ", ".join(f"{p.name}={p.default!r}" for p in options if p.default is not p.empty)
    mixer = build(name, d_model)
    lines = [f"{name}({shown})"]
    lines += [f"  {key} {list(value.shape)}" for key, value in mixer.state_dict().items()]
    if mixer.causal:
        state = mixer.initial_state(1)
        parts = {k: v for k, v in vars(state).items() if v is not None}
        lines.append("  state: " + ", ".join(f"{k} {list(v.shape[1:])}" for k, v in parts.items()))
    assert mixer.causal == REGISTRY[name].causal
    most = getattr(mixer, "map_heads", None)
    shown = "" if most is None else f", at most {most}"
    lines.append(f"  maps: {mixer.attention_map(torch.zeros(1, 2, d_model)).shape[1]}{shown}")
    return "\n".join(lines) + "\n"


def test_options_and_parameters(any_name: str) -> None:
    blocks = FILE.read_text(encoding="utf-8").split("\n\n")
    known = {block.partition("(")[0]: block.strip() + "\n" for block in blocks}
    assert described(any_name) == known[any_name]


def options(*kinds: type) -> list[tuple[str, str, Any]]:
    """(mixer, option, default) of those options whose default is of these types."""
    found = ((n, p) for n, e in REGISTRY.items() for p in inspect.signature(e.factory).parameters.values())
    return [(name, p.name, p.default) for name, p in found if type(p.default) in kinds]


@pytest.mark.parametrize(("name", "option", "default"), [o for o in options(bool) if o[1].endswith("bias")])
def test_biases_are_there_or_not(name: str, option: str, default: bool) -> None:
    mixer = build(name, 12, **{option: not default})
    wide = {"use_bias": ("in_proj", "out_proj"), "use_conv_bias": ("conv1d",)}
    gates = ("igate_preact", "fgate_preact")  # they start from their biases
    layers = {k: m for k, m in mixer.named_modules() if isinstance(m, nn.Linear) and k not in gates}
    if option in wide:
        layers = {k: mixer.get_submodule(k) for k in wide[option]}
    assert layers and {k: m.bias is None for k, m in layers.items()} == dict.fromkeys(layers, default)


# The value to compare the default with, where half of it (or one more) is no value or makes no difference.
OTHER: dict[str, Any] = {
    "eps": 0.5,
    "normaliser_eps": 0.5,
    "A_floor": 2.0,
    "r_min": 0.5,
    "d_state": 8,
    "max_length": 8,
    "num_layers": 4,
}
# What else an option needs to count.
WITH: dict[str, dict[str, Any]] = {
    "layer_idx": {"num_layers": 4},
    "num_layers": {"layer_idx": 2},  # of 3 and of 4
    "rotary_base": {"head_dim": 8},
    "norm_weights": {"norm_eps": 1e-6},
}


@pytest.mark.parametrize(("name", "option", "default"), options(bool, int, float))
def test_every_option_counts(name: str, option: str, default: bool | float) -> None:
    """Another value makes other parameters, or another function of the same."""
    other = not default if isinstance(default, bool) else default + 1 if type(default) is int else default / 2
    default = 3 if option == "num_layers" else default
    torch.manual_seed(1)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    found = []
    for value in (default, OTHER.get(option, other)):
        torch.manual_seed(0)
        mixer = build(name, 12, **{option: value}, **WITH.get(option, {})).double()
        fresh = {k: p.detach().clone() for k, p in mixer.named_parameters()}
        torch.manual_seed(2)
        with torch.no_grad():
            for p in mixer.parameters():
                p.add_(torch.randn_like(p))
            found.append((fresh, mixer(x)[0]))
    (before, y), (after, z) = found
    same = before.keys() == after.keys() and all(torch.equal(p, after[k]) for k, p in before.items())
    assert not (same and torch.equal(y, z))


def test_defaults_of_the_hybrid() -> None:
    blocks = FILE.read_text(encoding="utf-8").split("\n\n")
    assert repr(HybridConfig(11, 8, 3)) == blocks[-1].strip()


if __name__ == "__main__":
    print("\n".join(map(described, REGISTRY)), HybridConfig(11, 8, 3), sep="\n")
