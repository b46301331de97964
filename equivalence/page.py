"""The report as one self-contained HTML page: nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..mixers import registry
from .prove import by_kind, error_of, found, together
from .style import INK, Drawn, colour, style
from .theorem import Outcome
from .training import PROMPT, SAMPLE, Training

THESIS = (
    "Every mixer in the zoo is one recurrence with a choice of decay and gating, "
    "and each way of computing it is the same function."
)
EQUATION = (
    "S<sub>t</sub> = decay<sub>t</sub> ∘ S<sub>t−1</sub> + k<sub>t</sub> v<sub>t</sub>ᵀ &emsp; "
    "o<sub>t</sub> = S<sub>t</sub>ᵀ q<sub>t</sub>"
)

GROUPS = {
    "forms": "The forms are one function",
    "orders": "Reading before or after the write",
    "gradients": "The gradients",
    "links": "Mixers that are special cases of each other",
    "operator": "The operator that is called",
    "lattice": "Equal to the last bit",
    "mixers": "The mixers",
}
EVIDENCE = {
    "exact": "an identity of polynomials, checked in the field of 2⁶¹ − 1 elements on the code that runs, at "
    "random points: no rounding. The error is the probability that a false identity went unseen.",
    "property": "random examples in floating point, with shapes, lengths, decays and cuts of all kinds. The "
    "error is the largest relative difference seen.",
    "text": "the same on the bytes of real text.",
    "bound": "the rounding error, under a bound that was computed beside the value; shown as a part of it.",
    "coq": "a machine-checked proof about a model of the code, for all lengths.",
    "bitwise": "inputs on which every intermediate is exact: equal means equal bits, so there is no error.",
}

CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6670; --line: #dfe3e8; --back: #fff;
  --card: #f6f8fa; --good: #0a7d4f; --bad: #c4281c; --badback: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a0a8b1; --line: #333941;
  --back: #14171a; --card: #1d2125; --good: #4cc38a; --bad: #ff7b6e; --badback: #3a1d1a; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 2rem; margin: 0 } h2 { margin: 3rem 0 .5rem; font-size: 1.4rem }
h3 { margin: 1.75rem 0 .4rem; font-size: 1.05rem }
p, pre { max-width: 46rem } .thesis { font-size: 1.2rem; margin: .25rem 0 .75rem }
.equation { font: italic 1.15rem/1.6 Georgia, "DejaVu Serif", serif; overflow-x: auto; margin: 0 0 1rem }
.soft, figcaption { color: var(--soft); font-size: .9rem }
.verdict { font-weight: 600; padding: .6rem .9rem; border-radius: 8px; background: var(--card);
  border-left: 5px solid var(--good) }
.verdict.bad { border-color: var(--bad); background: var(--badback) }
.failure { background: var(--badback); border-left: 5px solid var(--bad); border-radius: 8px;
  padding: .6rem .9rem; margin: .75rem 0 }
.scroll { overflow-x: auto; margin: .5rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600; white-space: nowrap; vertical-align: bottom }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code, .name { font: .85rem/1.5 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.name { white-space: nowrap } .good { color: var(--good) } .bad { color: var(--bad); font-weight: 600 }
.dot { display: inline-block; width: .65em; height: .65em; border-radius: 50%; margin-right: .45em;
  box-shadow: 0 0 0 1px var(--line) }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; max-width: 68rem }
summary { cursor: pointer } nav { margin: 1rem 0; font-size: .95rem }
figure { margin: 1.5rem 0 2.5rem } figcaption { max-width: 52rem; margin-top: .5rem }
.picture { overflow-x: auto; background: #fff; border: 1px solid var(--line); border-radius: 8px }
.picture img { display: block; width: 100%; min-width: 36rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--card); border-radius: 8px;
  padding: .6rem .9rem; margin: .3rem 0 1rem; font-size: .85rem }
.samples { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)) }
pre b { color: var(--soft) } dl { display: grid; grid-template-columns: max-content 1fr;
  gap: .2rem 1rem; font-size: .9rem; max-width: 52rem } dt { color: var(--soft) } dd { margin: 0 }
a { color: inherit }
"""


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    outcomes: Sequence[Outcome]
    figures: Sequence[Drawn]
    trainings: Mapping[str, Training]
    versions: Mapping[str, str]
    command: str
    date: str
    seconds: float

    @property
    def failures(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.passed]

    @property
    def disagreeing(self) -> list[str]:
        """Mixers whose trained model gives different logits in prefill, chunked prefill and decode."""
        return [name for name, t in self.trainings.items() if not t.agrees]

    @property
    def holds(self) -> bool:
        return not self.failures and not self.disagreeing


def render(report: Report) -> str:
    body = [
        "<h1>mixerzoo</h1>",
        f'<p class="thesis">{escape(THESIS)}</p>',
        f'<p class="equation">{EQUATION}</p>',
        _verdict(report),
        *(_failure(o) for o in report.failures),
        _contents(),
        '<h2 id="proofs">Proofs</h2>',
        _proofs(report.outcomes),
        '<h2 id="figures">Figures</h2>',
        *(_figure(drawn) for drawn in report.figures),
        '<h2 id="models">Trained models</h2>',
        _trained(report.trainings),
        '<h2 id="mixers">The mixers</h2>',
        _mixers(),
        '<h2 id="made">How this page was made</h2>',
        _made(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>mixerzoo: report</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Escaped, with `code` as code and N^1.2 as a power."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"N\^([\d.]+\d)", r"N<sup>\1</sup>", text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Cells are HTML; `numeric` columns are set flush right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(row):
            parts.append(f'<{tag} class="n">{cell}</{tag}>' if i in numeric else f"<{tag}>{cell}</{tag}>")
        return "<tr>" + "".join(parts) + "</tr>"

    body = "\n".join(cells("td", row) for row in rows)
    return f'<div class="scroll"><table>\n{cells("th", head)}\n{body}\n</table></div>'


def _verdict(report: Report) -> str:
    failed, total = len(report.failures), len(report.outcomes)
    cases = sum(o.cases for o in report.outcomes)
    if failed:
        text = f"{failed} of {total} theorems FAIL"
    else:
        text = f"All {total} theorems hold, on {cases:,} cases"
    if report.disagreeing:
        text += f"; trained models disagree with themselves: {', '.join(report.disagreeing)}"
    elif report.trainings:
        text += (
            f"; {len(report.trainings)} models trained on real text give the same in prefill, chunked "
            "prefill and decode"
        )
    return f'<p class="verdict{"" if report.holds else " bad"}">{escape(text)}.</p>'


def _contents() -> str:
    parts = {
        "proofs": "Proofs",
        "figures": "Figures",
        "models": "Trained models",
        "mixers": "The mixers",
        "made": "How this page was made",
    }
    return "<nav>" + " · ".join(f'<a href="#{a}">{text}</a>' for a, text in parts.items()) + "</nav>"


def _failure(o: Outcome) -> str:
    return (
        f'<div class="failure"><span class="name">✗ {escape(o.name)}</span><br>{_text(o.statement)}<br>'
        f"<b>but:</b> {escape(o.failure or '')}</div>"
    )


def _figure(drawn: Drawn) -> str:
    svg = io.BytesIO()
    with style():
        drawn.figure.savefig(svg, format="svg", metadata={"Date": None})
    width = 100 * drawn.figure.get_figwidth()
    image = base64.b64encode(svg.getvalue()).decode()
    data = base64.b64encode(json.dumps(drawn.data).encode()).decode()
    return (
        f'<figure id="{drawn.name}"><div class="picture" style="max-width:{width:.0f}px">'
        f'<img alt="{escape(drawn.title)}" src="data:image/svg+xml;base64,{image}"></div>\n'
        f"<figcaption>{_text(drawn.caption)} "
        f'<a download="{drawn.name}.json" href="data:application/json;base64,{data}">The numbers.</a>'
        "</figcaption></figure>"
    )


def _named(name: str) -> str:
    """A mixer's name behind a dot of its family's colour (softmax attention's is the ink of the page)."""
    tint = colour(name)
    tint = "var(--ink)" if tint == INK else tint
    return f'<span class="name"><span class="dot" style="background:{tint}"></span>{escape(name)}</span>'


def _readable(text: bytes) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text.decode("utf-8", "replace"))


def _trained(trainings: Mapping[str, Training]) -> str:
    if not trainings:
        return "<p>No models were trained.</p>"
    rows, samples = [], []
    for name, t in trainings.items():
        sample = t.sample
        mark = '<span class="good">✓</span>' if t.agrees else '<span class="bad">✗ differ</span>'
        rows.append(
            (
                _named(name),
                f"{t.parameters:,}",
                f"{t.validation_bits[-1]:.2f}",
                f"{t.seconds:.0f} s",
                f"{sample.state_after_prompt:,}",
                f"{sample.state_at_end:,}",
                f"{t.float32.relative:.0e}",
                f"{mark} {t.float64.relative:.0e}",
            )
        )
        samples.append(
            f"<div>{_named(name)}<pre><b>{escape(_readable(PROMPT))}</b>{escape(_readable(sample.text).rstrip())}</pre></div>"
        )
    s = next(iter(trainings.values())).settings
    head = (
        "mixer",
        "parameters",
        "bits per byte",
        "training",
        "state after prompt",
        "state at end",
        "difference, float32",
        "difference, float64",
    )
    return (
        f"<p>Byte-level models, {s.layers} layers of width {s.d_model}, {s.steps:,} steps of {s.batch} × "
        f"{s.length} bytes. “State” is how many numbers the model carries from one byte to the next, after "
        "the prompt and at the end of the sample below: constant for a recurrence, growing for softmax "
        "attention. “Difference” is the largest between the logits of the whole sequence at once, in uneven "
        "pieces, and byte by byte, relative to the largest logit, of the trained model on validation text."
        "</p>"
        + _table(head, rows, range(1, 8))
        + f'<h3>What they write</h3><p class="soft">{SAMPLE} bytes after the prompt, one step for each, at '
        "temperature 0.6. So small a model, after so little training, spells better than it reasons.</p>"
        + '<div class="samples">'
        + "\n".join(samples)
        + "</div>"
    )


def _proofs(outcomes: Sequence[Outcome]) -> str:
    used = by_kind(outcomes)
    parts = ["<dl>"]
    parts += [f"<dt>{escape(e)}</dt><dd>{escape(EVIDENCE.get(e, ''))}</dd>" for e in used]
    parts.append("</dl>")
    groups: dict[str, list[Outcome]] = {}
    for o in outcomes:
        groups.setdefault(o.name.split("/")[0], []).append(o)
    for group, members in groups.items():
        failed = sum(not o.passed for o in members)
        # The mixers make one small table; other groups open on a click, or by themselves if one fails.
        opened = " open" if failed or group == "mixers" else ""
        parts.append(f"<details{opened}><summary>{_summary(group, members, failed)}</summary>")
        matrix = [o for o in members if o.name.count("/") == 2]
        rest = [o for o in members if o not in matrix]
        if rest:
            parts.append(_theorems(rest))
        if matrix:
            parts.append(_matrix(matrix))
        parts.append("</details>")
    return "\n".join(parts)


def _summary(group: str, members: Sequence[Outcome], failed: int) -> str:
    mark = '<span class="bad">✗</span>' if failed else '<span class="good">✓</span>'
    fails = f'<span class="bad">{failed} fail</span>, ' if failed else ""
    cases = sum(o.cases for o in members)
    evidence = ", ".join(by_kind(members))
    return (
        f"{mark} <b>{escape(GROUPS.get(group, group))}</b> "
        f'<span class="soft">{fails}{len(members)} theorems, {cases:,} cases ({evidence})</span>'
    )


def _mark(o: Outcome) -> str:
    return '<span class="good">✓</span>' if o.passed else '<span class="bad">✗ fails</span>'


def _theorems(outcomes: Sequence[Outcome]) -> str:
    rows = [
        (
            f'<span class="name">{_mark(o)} {escape(o.name)}</span>',
            f'{_text(o.statement)}<br><span class="soft">over {_text(o.over)}</span>',
            "<br>".join(escape(e.kind) for e in o.evidence),
            "<br>".join(f"{e.cases:,}" for e in o.evidence),
            "<br>".join(escape(found(e)) for e in o.evidence),
        )
        for o in outcomes
    ]
    return _table(("theorem", "statement", "evidence", "cases", "found"), rows, (3,))


def _matrix(outcomes: Sequence[Outcome]) -> str:
    """Theorems named group/mixer/property: a row for each mixer, a column for each property."""
    found = {tuple(o.name.split("/")[1:]): o for o in outcomes}
    mixers = list(dict.fromkeys(mixer for mixer, _ in found))
    properties = list(dict.fromkeys(prop for _, prop in found))
    rows = []
    for mixer in mixers:
        row = [_named(mixer) if mixer in registry.REGISTRY else escape(mixer)]
        for prop in properties:
            o = found.get((mixer, prop))
            cell = "" if o is None else f"{_mark(o)} {escape(error_of(together(o.evidence)))}"
            row.append(
                "" if o is None else f'<span title="{escape(o.name)}: {o.cases:,} cases">{cell}</span>'
            )
        rows.append(row)
    stated = []
    for prop in properties:
        same = [o for o in outcomes if o.name.endswith("/" + prop)]
        statement = re.sub(r" \([^()]*arXiv[^()]*\)", "", same[0].statement)  # the papers are listed below
        stated.append(
            f"<dt>{escape(prop)}</dt><dd>{_text(statement)} ({escape(', '.join(by_kind(same)))})</dd>"
        )
    return _table(("mixer", *map(escape, properties)), rows) + "<dl>" + "".join(stated) + "</dl>"


def _mixers() -> str:
    rows = []
    for name, entry in registry.REGISTRY.items():
        paper = re.sub(
            r"arXiv:(\d+\.\d+)", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(entry.paper)
        )
        rows.append((_named(name), *map(escape, (entry.family, entry.decay, entry.gating)), paper))
    return _table(("mixer", "family", "decay", "gating", "paper"), rows)


def _made(report: Report) -> str:
    rows = {
        "command": f"<code>{escape(report.command)}</code>",
        "date": escape(report.date),
        "took": f"{report.seconds / 60:.1f} minutes",
        **{escape(name): escape(version) for name, version in report.versions.items()},
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items()) + "</dl>"
