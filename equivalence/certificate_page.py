"""The page of a certificate, for a reader who doubts: what is claimed, on what evidence, what that lacks.

One file that loads nothing. Its few lines of script only hide what does not match the words one types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from .markup import definitions, document, table, words
from .proof_table import found, lacking
from .theorem import EvidenceOutcome
from .theorems_page import GROUPS


class Reading(NamedTuple):
    """How one kind of evidence is to be read."""

    short: str
    run: str
    shows: str
    not_shown: str


READ = {
    "exact": Reading(
        "an identity of polynomials, checked in the field of 2⁶¹ − 1 elements on the code that runs, at "
        "random points: no rounding. p is the probability that a false identity went unseen.",
        "The functions that run in production, on random elements of the field with 2⁶¹ − 1 elements in the "
        "place of tensors (formal logarithms in the place of log-decays).",
        "Both sides are the same polynomials: two that differ, of degree d, agree at a random point with "
        "probability at most d / (2⁶¹ − 1). p sums that over all cases.",
        "Rounding, overflow, NaN. Lengths and sizes that are not among the cases, but for what induction "
        "over proved bodies and loops gives (see the statements). GPU kernels.",
    ),
    "bitwise": Reading(
        "inputs on which every intermediate is exact: equal means equal bits, so there is no error.",
        "Inputs of −1, 0, 1 and decays of 1, ½, 0, for which every intermediate has few binary digits.",
        "The code computes exactly the rational result there, in any order of its sums, on the device named.",
        "Other inputs: decays that are not powers of two, and rounding.",
    ),
    "bound": Reading(
        "the rounding error, under a bound that was computed beside the value; shown as a part of it.",
        "The same code in floating point, and beside each value a bound on its rounding error, carried along "
        "by the rules of IEEE arithmetic.",
        "The measured error lies under the bound, at the part of it that is shown: 1 would be the bound.",
        "Other inputs than those run: the bound holds for each, but how large it is was seen for these only. "
        "It assumes what the theorem says of exp.",
    ),
    "property": Reading(
        "random examples in floating point, with shapes, lengths, decays and cuts of all kinds. The error is "
        "the largest relative difference seen.",
        "Examples in floating point that hypothesis draws, or a fixed list of cases; a failure is shrunk.",
        "No counterexample among them; the largest relative error that was seen.",
        "Cases that no example met. Agreement is up to the tolerance that the theorem names, not exact.",
    ),
    "text": Reading(
        "the same on the bytes of real text.",
        "Small stacks of mixers on the bytes of real English, in float32.",
        "Prefill, prefill in pieces and decoding agree on inputs that nobody drew at random.",
        "Other texts, and the sizes of real models.",
    ),
    "coq": Reading(
        "a machine-checked proof about a model of the code, for all lengths.",
        "Coq's kernel checks the proofs of the lemmas that are named, from their source, on this machine.",
        "The statement holds of the model for every length, chunk size and tree, over any ring.",
        "That the code is the model: exact evidence ties the two together, at the lengths it ran.",
    ),
}

CSS = """
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: 1rem 0 }
.tools input[type=search] { flex: 1 1 16rem; font: inherit; padding: .4rem .7rem; border-radius: 8px;
  border: 1px solid var(--line); background: var(--card); color: inherit }
.tools button { font: inherit; padding: .3rem .7rem; border-radius: 8px; border: 1px solid var(--line);
  background: var(--card); color: inherit; cursor: pointer }
.kind { font-size: .8rem; border: 1px solid var(--line); border-radius: 6px; padding: 0 .4em;
  margin-left: .35em; color: var(--soft); white-space: nowrap }
.kind.bad { color: var(--bad); border-color: var(--bad) } .kind.none { border-style: dashed }
details.group { max-width: none } details.theorem { padding: .35rem 0 .35rem 1rem; max-width: none }
details.theorem > summary { line-height: 1.6 }
details.theorem > div { padding: .3rem 0 .8rem 1.1rem; max-width: 62rem }
.formula { font: .95rem/1.6 "DejaVu Serif", Georgia, serif; white-space: pre-wrap; max-width: none }
.digest { color: var(--soft); font-size: .75rem; overflow-wrap: anywhere }
td .digest { white-space: nowrap }
[hidden] { display: none !important }
@media print { .tools { display: none } }
"""

SCRIPT = """<script>
const theorems = [...document.querySelectorAll("details.theorem")];
const groups = [...document.querySelectorAll("details.group")];
const search = document.getElementById("search"), count = document.getElementById("count");
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const t of theorems) {
    const text = t.textContent.toLowerCase();
    t.hidden = !words.every(w => text.includes(w));
    shown += !t.hidden;
  }
  for (const g of groups) {
    g.hidden = !g.querySelector("details.theorem:not([hidden])");
    if (words.length) g.open = !g.hidden;
  }
  count.textContent = words.length ? shown + " of " + theorems.length : "";
});
const all = open => [...groups, ...theorems].forEach(d => { d.open = open; });
document.getElementById("open").addEventListener("click", () => all(true));
document.getElementById("close").addEventListener("click", () => all(false));
</script>"""


def certificate_page(record: Mapping[str, Any]) -> str:
    """The page of a certificate, as `certificate` makes it or `read` returns it."""
    theorems = record["theorems"]
    failed = [t for t in theorems if not t["passed"]]
    body = [
        "<h1>mixerzoo: certificate</h1>",
        '<p class="thesis">What is stated, what was run for it on this machine, and what that does not '
        "show.</p>",
        _verdict(theorems, failed),
        *(_failure(t) for t in failed),
        _nav(),
        '<h2 id="evidence">How to read the evidence</h2>',
        _evidence(theorems),
        '<h2 id="environment">What it was made with</h2>',
        _environment(record),
        '<h2 id="theorems">The theorems</h2>',
        '<p class="tools"><input type="search" id="search" placeholder="Words of a name, a statement, a '
        'kind of evidence, what is lacking" aria-label="Show theorems with these words">'
        '<span id="count" class="soft"></span><button id="open">open all</button>'
        '<button id="close">close all</button></p>',
        *_groups(record),
        SCRIPT,
    ]
    return document("mixerzoo: certificate", body, CSS)


def _outcome(e: Mapping[str, Any]) -> EvidenceOutcome:
    return EvidenceOutcome(**{**e, "lemmas": tuple(e["lemmas"]), "seconds": 0.0})


def _verdict(theorems: Sequence[Mapping[str, Any]], failed: Sequence[Any]) -> str:
    cases = sum(e["cases"] for t in theorems for e in t["evidence"])
    absent = sum(e["passed"] is None for t in theorems for e in t["evidence"])
    count = len(theorems)
    if failed:
        text = f"{len(failed)} of {count} theorem{'s' * (count > 1)} FAIL{'S' * (len(failed) == 1)}"
    else:
        text = f"All {count} theorems hold" if count > 1 else "The theorem holds"
    text += f", on {cases:,} cases"
    if absent:
        text += f"; evidence that could not be gathered on this machine: {absent}, marked below"
    return f'<p class="verdict{" bad" if failed else ""}">{escape(text)}.</p>'


def _failure(t: Mapping[str, Any]) -> str:
    why = "".join(
        f"<br><b>but, {escape(e['kind'])}:</b> {escape(e['failure'] or e['absent'] or '')}"
        for e in t["evidence"]
        if not e["passed"]
    )
    return (
        f'<div class="failure"><a href="#{escape(t["name"])}" class="name">✗ {escape(t["name"])}</a><br>'
        f"{words(t['statement'])}{why}</div>"
    )


def _nav() -> str:
    parts = {"evidence": "How to read it", "environment": "What it was made with", "theorems": "The theorems"}
    return "<nav>" + " · ".join(f'<a href="#{a}">{text}</a>' for a, text in parts.items()) + "</nav>"


def _evidence(theorems: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for kind, reading in READ.items():
        have = [e for t in theorems for e in t["evidence"] if e["kind"] == kind]
        here = sum(e["passed"] is not None for e in have)
        rows.append(
            (
                f"<b>{kind}</b>",
                words(reading.run),
                words(reading.shows),
                words(reading.not_shown),
                f"{here}" + (f" + {len(have) - here} not here" if here < len(have) else ""),
            )
        )
    return table(("evidence", "what is run", "what holding means", "what it does not show", "theorems"), rows)


def _environment(record: Mapping[str, Any]) -> str:
    made, run = record["made with"], record["run"]
    command = ["mixerzoo prove"] + ["--quick"] * run["quick"] + [f"--seed {run['seed']}"]
    command += [f"--evidence {kind}" for kind in run["evidence"] or ()] + list(run["names"] or ())
    if run["text"]["file"] is not None:
        command.append(f"--text {run['text']['file']}")
    rows = {"command": f"<code>{escape(' '.join(command))}</code>"}
    rows |= {name: escape(version) for name, version in made["versions"].items()}
    rows |= {name: escape(value) for name, value in made["machine"].items()}
    rows["source code"] = f'<span class="digest">SHA-256 {escape(made["source"])}</span>'
    if run["text"]["sha256"] is not None:
        rows["text"] = f'<span class="digest">SHA-256 {escape(run["text"]["sha256"])}</span>'
    rows["seal"] = f'<span class="digest">SHA-256 {escape(record["seal"])}, over all that is compared</span>'
    return (
        definitions(rows)
        + '<p class="soft">The same command with <code>--json FILE</code> writes this for a machine; '
        "<code>mixerzoo prove --replay FILE</code> runs them again and compares every field, and a digest of "
        "every number that took part in a comparison, bit by bit. Results in floating point may differ in "
        "their last bits on other processors, and with other versions of torch.</p>"
    )


def _groups(record: Mapping[str, Any]) -> list[str]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for t in record["theorems"]:
        groups.setdefault(t["name"].partition("/")[0], []).append(t)
    parts = []
    for group, members in groups.items():
        failed = sum(not t["passed"] for t in members)
        fails = f'<span class="bad">{failed} fail</span>, ' if failed else ""
        parts.append(
            f'<details class="group"{" open" if failed else ""}><summary>{_mark(not failed)} '
            f"<b>{escape(GROUPS.get(group, group))}</b> "
            f'<span class="soft">{fails}{len(members)} theorems</span></summary>'
        )
        parts += [_theorem(t) for t in members]
        parts.append("</details>")
    return parts


def _mark(passed: bool) -> str:
    return '<span class="good">✓</span>' if passed else '<span class="bad">✗</span>'


def _theorem(t: Mapping[str, Any]) -> str:
    badges = "".join(
        f'<span class="kind{" bad" if e["passed"] is False else " none" if e["passed"] is None else ""}">'
        f"{escape(e['kind'])}</span>"
        for e in t["evidence"]
    )
    rows = [
        (
            escape(e["kind"]),
            f"{e['cases']:,}",
            _found(e),
            words(t["ranges"].get(e["kind"], "")) or '<span class="soft">the same</span>',
            f'<span class="digest" title="{escape(e["digest"])}">{escape(e["digest"][:16])}</span>',
        )
        for e in t["evidence"]
    ]
    stated = {
        "left": words(t["left"]),
        "right": words(t["right"]),
        "over": words(t["over"]),
        "lacks": "<br>".join(f"{escape(kinds)}: {words(why)}" for kinds, why in lacking(t["lacks"]))
        or "nothing",
        "run it": f"<code>mixerzoo prove {escape(t['name'])}</code>",
    }
    return (
        f'<details class="theorem" id="{escape(t["name"])}"{"" if t["passed"] else " open"}><summary>'
        f'{_mark(t["passed"])} <span class="name">{escape(t["name"])}</span>{badges}<br>'
        f'<span class="soft">{words(t["statement"])}</span></summary><div>'
        f'<p class="formula">{escape(t["formula"])}</p>{definitions(stated)}'
        + table(("evidence", "cases", "found", "over", "digest"), rows, (1,))
        + "</div></details>"
    )


def _found(e: Mapping[str, Any]) -> str:
    if e["passed"] is False:
        return f'<span class="bad">FAILS</span> {escape(e["failure"] or "")}'
    return escape(found(_outcome(e)))
