"""Streams: pieces of any size, states that go on where they were saved, memory that does not grow."""

import json
from dataclasses import replace

import pytest

from mixerzoo.equivalence.cli import main
from mixerzoo.equivalence.language_model import numbers
from mixerzoo.equivalence.stream import command, figure
from mixerzoo.equivalence.stream.reading import Plan, Reader, difference, resume, save

TEXT = bytes(range(32, 127)) * 7 + b"The quick brown fox jumps over the lazy dog. " * 40
SMALL = Plan(piece=50, d_model=16, window=8)


def read(plan, tokens, piece=None):
    reader = Reader(replace(plan, piece=piece or plan.piece), TEXT)
    while reader.position < tokens:
        reader.advance(min(reader.plan.piece, tokens - reader.position))
    return reader


@pytest.mark.parametrize("mixer", ["lightning", "mamba", "hgrn-complex", "gated-deltanet", "rwkv4", "hybrid"])
def test_pieces_of_any_size_come_to_one_state(mixer):
    plan = replace(SMALL, mixer=mixer)
    whole = read(plan, 3000)
    sizes = {numbers(whole.state)}
    for piece in (7, 333, 3000):
        other = read(plan, 3000, piece)
        assert difference(whole, other) < 1e-5
        sizes.add(numbers(other.state))
    assert sizes == {numbers(read(plan, 100).state)}
    # The measure itself sees a state that is another.
    assert difference(whole, read(plan, 2999)) > 1e-3


@pytest.mark.parametrize("mixer", ["lightning", "mamba", "hybrid"])
def test_what_was_saved_goes_on_bit_by_bit(mixer, tmp_path):
    plan = replace(SMALL, mixer=mixer)
    file = tmp_path / "state.safetensors"
    save(read(plan, 1000), file)
    again = Reader(plan, TEXT)
    resume(again, file)
    assert again.position == 1000
    while again.position < 2000:
        again.advance(50)
    assert again.fingerprint() == read(plan, 2000).fingerprint() != read(plan, 1950).fingerprint()


def test_a_state_of_another_run_is_refused(tmp_path):
    file = tmp_path / "state.safetensors"
    save(read(SMALL, 100), file)
    for changed, said in (({"piece": 60}, "piece = 50"), ({"mixer": "mamba"}, "mixer = 'lightning'")):
        with pytest.raises(ValueError, match=said):
            resume(Reader(replace(SMALL, **changed), TEXT), file)
    with pytest.raises(ValueError, match="text = "):
        resume(Reader(SMALL, TEXT[1:]), file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="accepted: a file that this command wrote"):
        resume(Reader(SMALL, TEXT), file)


OPTIONS = ("--piece", "64", "--d-model", "16", "--other-piece", "0", "--text")


def stream(text, *options):
    return main(["stream", "--tokens", "1000", *OPTIONS, str(text), *map(str, options)])


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(TEXT)
    return file


def test_an_interrupted_run_goes_on(text, tmp_path, monkeypatch, capsys):
    """The end of the text is no whole piece, and neither is where the interruption falls."""
    whole, parts, state = tmp_path / "whole.json", tmp_path / "parts.json", tmp_path / "state"
    assert stream(text, "--json", whole) == 0
    advance, calls = Reader.advance, []

    def interrupted(self, tokens):
        calls.append(tokens)
        if len(calls) == 5:
            raise KeyboardInterrupt
        advance(self, tokens)

    with monkeypatch.context() as m:
        m.setattr(Reader, "advance", interrupted)
        assert stream(text, "--state", state) == 130
    assert "stopped at token 256" in capsys.readouterr().out
    assert stream(text, "--state", state, "--json", parts) == 0
    assert "going on at token 256" in capsys.readouterr().out
    one, two = (json.loads(file.read_text()) for file in (whole, parts))
    assert one["fingerprint"] == two["fingerprint"]
    # What is saved at the end is the last whole piece: a longer run is the same as in one go, too.
    longer = ("--tokens", "2000")
    assert stream(text, *longer, "--state", state, "--json", parts) == 0
    assert stream(text, *longer, "--json", whole) == 0
    one, two = (json.loads(file.read_text()) for file in (whole, parts))
    assert two["from"] == 960 and one["fingerprint"] == two["fingerprint"]


def test_the_figure(text, tmp_path, monkeypatch):
    monkeypatch.setattr(figure, "LENGTHS", (16, 32, 64))
    file, found = tmp_path / "stream.svg", tmp_path / "found.json"
    assert stream(text, "--plot", file, "--json", found) == 0
    assert file.read_text().startswith("<?xml")
    curves = json.loads(found.read_text())["curves"]
    assert {len(v) for v in curves["seconds"].values()} == {3}
    assert curves["stream"][-1]["tokens"] == 1000


def test_the_law():
    parts = {"token": 2.0, "softmax_token": 1.0, "pair": 0.5}
    assert figure.law(10, 0.0, **parts) == 20.0
    assert figure.law(10, 1.0, **parts) == 60.0
    assert figure.law(10, 0.25, **parts) == 0.75 * 20 + 0.25 * 60
    seconds = {name: [0.0] * 5 for name in ("linear", "softmax", "sdpa")}
    n1, n2 = figure.LENGTHS[-2:]
    seconds["linear"][-1] = 2.0 * n2
    seconds["softmax"][-2:] = [n1 + 0.5 * n1**2, n2 + 0.5 * n2**2]
    seconds["sdpa"][-2:] = [0.25 * n1**2, 0.25 * n2**2]
    assert figure.costs(seconds) == pytest.approx({**parts, "sdpa_pair": 0.25})


@pytest.mark.parametrize(
    "options, said",
    [
        (("--tokens", "0"), "--tokens is 0; accepted: a whole number from 1"),
        (("--window", "0"), "--window is 0"),
        (("--mixer", "hybrid", "--layers", "1"), "accepted with --mixer hybrid: 2 or more"),
        (("--plot", "stream.gif"), "ends in .png or .svg"),
    ],
)
def test_wrong_options(text, options, said, capsys):
    assert stream(text, *options) == 2
    assert said in capsys.readouterr().err


def test_memory_is_measured():
    before = command.resident()
    kept = bytearray(b"1") * 80_000_000
    assert command.resident() > before + 40 and len(kept)
