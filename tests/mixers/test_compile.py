"""One graph, no break: `torch.compile(fullgraph=True)` around forward and step, padded and packed."""

from __future__ import annotations

import pytest
import torch

from mixerzoo.mixers import MixerState, build


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def same(compiled: tuple[torch.Tensor, MixerState], plain: tuple[torch.Tensor, MixerState]) -> None:
    (y, s), (z, u) = compiled, plain
    assert (y - z).abs().max() <= 1e-12 * (1 + z.abs().max())
    assert torch.equal(s.position, u.position)
    if s.recurrent is not None:
        assert (s.recurrent - u.recurrent).abs().max() <= 1e-12 * (1 + u.recurrent.abs().max())


def test_one_graph(make, name: str) -> None:
    """Captured whole, gradients included; code generation is the test below."""
    mixer = make(name)
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]).bool()
    forward = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    step = torch.compile(mixer.step, fullgraph=True, backend="aot_eager")
    _, state = plain = mixer(x, mask=mask)
    same(forward(x, mask=mask), plain)
    row = torch.tensor([True, False])
    same(step(x[:, 0], state, row), mixer.step(x[:, 0], state, row))

    state = state.detach()
    parameters = list(mixer.parameters())
    compiled = torch.autograd.grad(forward(x, state)[0].square().sum(), parameters)
    for a, b in zip(
        compiled, torch.autograd.grad(mixer(x, state)[0].square().sum(), parameters), strict=True
    ):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


@pytest.mark.parametrize("kind", ["mamba", "softmax"])
def test_packed_in_one_graph(make, kind: str) -> None:
    mixer = make(kind)
    x = torch.randn(1, 6, 6, dtype=torch.float64)
    cu = torch.tensor([0, 2, 6])
    forward = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    same(forward(x, cu_seqlens=cu), mixer(x, cu_seqlens=cu))
    state = mixer(x, cu_seqlens=cu)[1].detach()
    cu = torch.tensor([0, 5, 6])
    same(forward(x, state, cu_seqlens=cu), mixer(x, state, cu_seqlens=cu))


# One for each thing that depends on sizes: forms, windows, rotations, sums and maxima along time, two calls.
@pytest.mark.parametrize(
    "name", ["lightning", "mamba", "hgrn-complex", "gla", "gated-deltanet", "rwkv4", "mamba3", "softmax"]
)
def test_one_graph_for_all_sizes(make, name: str) -> None:
    mixer = make(name)
    forward = torch.compile(mixer, fullgraph=True, backend="aot_eager", dynamic=True)
    for sizes in ((2, 6), (3, 9)):
        x = torch.randn(*sizes, 6, dtype=torch.float64)
        state = mixer(x)[1].detach()
        same(forward(x, state), mixer(x, state))
    step = torch.compile(mixer.step, fullgraph=True, backend="aot_eager")
    same(step(x[:, 0], state), mixer.step(x[:, 0], state))


def test_one_graph_under_autocast() -> None:
    mixer = build("lightning", 8)
    x = torch.randn(2, 6, 8)
    forward = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(forward(x.bfloat16())[0]).all()


def test_generated_code(make) -> None:
    mixer = make("hgrn-complex")
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]).bool()
    same(torch.compile(mixer, fullgraph=True)(x, mask=mask), mixer(x, mask=mask))


@pytest.mark.parametrize("name", ["lightning", "mamba", "gated-deltanet", "rwkv4", "mamba3", "softmax"])
def test_exported_with_its_state(make, name: str, tmp_path) -> None:
    """A program that takes a state and returns the next, from memory and from a file."""
    mixer = make(name)
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    state = mixer(x)[1].detach()
    with torch.no_grad():
        program = torch.export.export(mixer, (x, state))
        torch.export.save(program, tmp_path / "mixer.pt2")
        for found in (program, torch.export.load(tmp_path / "mixer.pt2")):
            same(found.module()(x, state), mixer(x, state))
