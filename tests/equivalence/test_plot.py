"""The figures and `mixerzoo plot`: every figure from tiny settings, and the errors of the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import matplotlib
import pytest
import torch

from mixerzoo.equivalence import cli, plot
from mixerzoo.equivalence.figures import FIGURES, attention_maps, error_by_length, memory_horizon
from mixerzoo.equivalence.figures.plan import Inputs
from mixerzoo.equivalence.style import colour, powers, save, spread
from mixerzoo.equivalence.timing import exponent, one_thread
from mixerzoo.mixers.registry import REGISTRY


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_writes_its_picture_and_its_numbers(name: str, inputs: Inputs, tmp_path: Path) -> None:
    settings = dict(matplotlib.rcParams)
    module, calls = FIGURES[name], []
    drawn = module.make(inputs, lambda: calls.append(1))
    assert len(calls) == module.units(inputs.plan), "the progress bar would not end at 100%"
    svg, png, data = save(drawn, tmp_path)
    assert dict(matplotlib.rcParams) == settings, "settings of the importing program were changed"
    assert svg.read_text().startswith("<?xml") and png.read_bytes().startswith(b"\x89PNG")
    numbers = json.loads(data.read_text())
    assert numbers["figure"] == name and numbers["title"] == drawn.title and numbers["caption"]
    # The picture is drawn from the numbers alone, and the finding computed from them.
    again = module.draw({k: v for k, v in numbers.items() if k not in ("figure", "title", "caption")})
    assert again.title == drawn.title
    if "mixers" in numbers:
        shown = REGISTRY if name == "gallery" else inputs.plan.mixers
        assert list(numbers["mixers"]) == list(shown)


def test_labels_lie_apart_in_order_and_inside() -> None:
    wanted = [0.5, 0.52, 0.51, 0.99, 1.0, 0.0]
    placed = spread(wanted, 0.1, 0.0, 1.0)
    in_order = sorted(range(6), key=lambda i: wanted[i])
    gaps = [placed[b] - placed[a] for a, b in itertools.pairwise(in_order)]
    assert min(gaps) >= 0.1 - 1e-9 and min(placed) >= 0 and max(placed) <= 1 + 1e-9
    assert spread([0.2, 0.8], 0.1, 0, 1) == pytest.approx([0.2, 0.8])


def test_a_family_has_one_colour_and_families_differ() -> None:
    by_family: dict[str, set[str]] = {}
    for name, entry in REGISTRY.items():
        by_family.setdefault(entry.family, set()).add(colour(name))
    assert all(len(colours) == 1 for colours in by_family.values())
    assert len(set.union(*by_family.values())) == len(by_family)


def test_powers_are_set_as_mathematics() -> None:
    assert powers("as N^1.25 or so") == r"as $\mathregular{N^{1.25}}$ or so"


def test_the_exponent_is_the_slope() -> None:
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_the_subtracting_shortcut_is_the_recurrence_but_for_rounding() -> None:
    q, k, v, la = (x.double() for x in error_by_length.inputs(100, torch.float32, 0))
    exact, _ = error_by_length.recurrence(q, k, v, la, form="recurrent", backend="torch")
    torch.testing.assert_close(error_by_length.shortcut(q, k, v, la), exact)


def test_shares_and_distances_of_a_known_map() -> None:
    T = 8
    last_two = torch.eye(T) - 3 * torch.diag(torch.ones(T - 1), -1)  # weight 1 on itself, -3 one back
    share = attention_maps.shares(last_two)
    torch.testing.assert_close(share.sum(-1), torch.ones(T).double())
    assert memory_horizon.distances(share[None], (0.2, 0.5, 0.9)) == [[1, 2, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "no figure 'nonsense'; known: " + ", ".join(FIGURES)),
        (["learning-curves", "--steps", "0"], "--steps is 0; accepted: at least 1"),
        (
            ["attention-maps", "--text", "missing.txt"],
            "--text is missing.txt (missing); accepted: a file of at least",
        ),
    ],
)
def test_errors_say_what_is_accepted(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "deeper/figures"])
def test_an_output_that_is_a_file_is_refused_before_any_work(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "with_models", lambda *args: pytest.fail("models were trained"))
    monkeypatch.setattr(plot, "draw_all", lambda *args: pytest.fail("figures were drawn"))
    (tmp_path / "file").write_text("kept")
    output = tmp_path / "file" / below
    assert cli.main(["plot", "error-by-length", "-o", str(output)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"mixerzoo plot: --output is {output}; accepted: a folder, or the name of a new one"
    assert (tmp_path / "file").read_text() == "kept"


def test_the_command_writes_the_figures_it_is_asked_for(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "Plan", lambda: inputs.plan)
    assert cli.main(["plot", "error-by-length", "-o", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"error-by-length.{e}" for e in ("json", "png", "svg")
    ]
