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
from .certificate_page import READ
from .markup import definitions, document, table, words
from .proof_table import by_kind, error_of
from .style import INK, Drawn, colour, style
from .theorem import Outcome
from .theorems_page import GROUPS
from .training import PROMPT, SAMPLE, Training

THESIS = (
    "Every mixer in the zoo is one recurrence with a choice of decay and gating, "
    "and each way of computing it is the same function."
)
EQUATION = (
    "S<sub>t</sub> = decay<sub>t</sub> ∘ S<sub>t−1</sub> + k<sub>t</sub> v<sub>t</sub>ᵀ &emsp; "
    "o<sub>t</sub> = S<sub>t</sub>ᵀ q<sub>t</sub>"
)


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
    return document("mixerzoo: report", body)


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
        f'<div class="failure"><span class="name">✗ {escape(o.name)}</span><br>{words(o.statement)}<br>'
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
        f"<figcaption>{words(drawn.caption)} "
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
        + table(head, rows, range(1, 8))
        + f'<h3>What they write</h3><p class="soft">{SAMPLE} bytes after the prompt, one step for each, at '
        "temperature 0.6. So small a model, after so little training, spells better than it reasons.</p>"
        + '<div class="samples">'
        + "\n".join(samples)
        + "</div>"
    )


def _proofs(outcomes: Sequence[Outcome]) -> str:
    parts = [
        definitions({kind: words(READ[kind].short) for kind in by_kind(outcomes)}),
        "<p>Each theorem with its formula, both sides, all that its evidence found, and what it lacks: "
        '<a href="proofs.html">the certificate</a>, which <code>mixerzoo prove --replay proofs.json</code> '
        "makes again.</p>",
    ]
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
            f'{words(o.statement)}<br><span class="soft">over {words(o.over)}</span>',
            "<br>".join(escape(e.kind) for e in o.evidence),
            "<br>".join(f"{e.cases:,}" for e in o.evidence),
            "<br>".join(escape(error_of(e)) for e in o.evidence),
        )
        for o in outcomes
    ]
    return table(("theorem", "statement", "evidence", "cases", "error"), rows, (3, 4))


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
            cell = "" if o is None else f"{_mark(o)} {escape(' · '.join(map(error_of, o.evidence)))}"
            row.append(
                "" if o is None else f'<span title="{escape(o.name)}: {o.cases:,} cases">{cell}</span>'
            )
        rows.append(row)
    stated = []
    for prop in properties:
        same = [o for o in outcomes if o.name.endswith("/" + prop)]
        statement = re.sub(r" \([^()]*arXiv[^()]*\)", "", same[0].statement)  # the papers are listed below
        stated.append(
            f"<dt>{escape(prop)}</dt><dd>{words(statement)} ({escape(', '.join(by_kind(same)))})</dd>"
        )
    return table(("mixer", *map(escape, properties)), rows) + "<dl>" + "".join(stated) + "</dl>"


def _mixers() -> str:
    rows = []
    for name, entry in registry.REGISTRY.items():
        paper = re.sub(
            r"arXiv:(\d+\.\d+)", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', escape(entry.paper)
        )
        rows.append((_named(name), *map(escape, (entry.family, entry.decay, entry.gating)), paper))
    return table(("mixer", "family", "decay", "gating", "paper"), rows)


def _made(report: Report) -> str:
    rows = {
        "command": f"<code>{escape(report.command)}</code>",
        "date": escape(report.date),
        "took": f"{report.seconds / 60:.1f} minutes",
        **{escape(name): escape(version) for name, version in report.versions.items()},
    }
    return definitions(rows)
