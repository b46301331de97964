"""docs/theorems.md: the catalogue as a page, `mixerzoo prove --docs FILE`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .proof_table import lacking
from .theorem import EVIDENCE, Theorem

HEAD = """\
# The theorems

Made by `mixerzoo prove --docs docs/theorems.md`, from the catalogue that is run. What each kind of evidence
shows, and what it does not: [proofs](proofs.md).

R is the recurrence: S_t = (a_t b_tᵀ) ∘ S_{t−1} + k_t v_tᵀ, o_t = S_tᵀ q_t, with decays a over keys and b over
values, from an initial state S_0. M is a mixer with state s. ∘ is the elementwise product of arrays, and
composition of functions and of steps.
"""

GROUPS = {
    "forms": "The forms are one function",
    "orders": "The order of decay, write and read",
    "gradients": "Gradients",
    "delta": "The delta rule and the general erasure",
    "links": "Mixers that are special cases of each other",
    "operator": "The operator that is called",
    "lattice": "Equal to the last bit",
    "rounding": "Rounding, under its bound",
    "triton": "Triton's kernels",
    "coq": "For every length, by machine",
    "mixers": "Every mixer",
}


def theorems_page(theorems: Iterable[Theorem]) -> str:
    """Every theorem as an entry, in Markdown; those that differ by a mixer's name alone share one."""
    listed = list(theorems)
    counts = [(kind, sum(kind in t.evidence for t in listed)) for kind in EVIDENCE]
    rows = "".join(f"| {kind} | {n} | {len(listed) - n} |\n" for kind, n in counts)
    parts = [HEAD, f"{len(listed)} theorems:\n\n| evidence | have it | lack it |\n|---|---:|---:|\n{rows}"]
    sections: dict[str, list[Theorem]] = {}
    for t in listed:
        sections.setdefault(t.name.partition("/")[0], []).append(t)
    for section, members in sections.items():
        parts.append(f"## {GROUPS.get(section, section)}\n")
        entries: dict[str, list[Theorem]] = {}
        for t in members:
            entries.setdefault(re.sub(r"^(\w+)/[^/]+/", r"\1/*/", t.name), []).append(t)
        parts += [_entry(name, same) for name, same in entries.items()]
    return "\n".join(parts)


def _entry(name: str, theorems: Sequence[Theorem]) -> str:
    t = theorems[0]
    statements = dict.fromkeys(s.statement for s in theorems)
    lines = [f"### `{name}`\n"]
    if len(statements) == 1:
        lines.append(f"{_words(t.statement)}\n")
    else:  # what they say differs by a name, or by a source: the common words, then each
        lines += [f"- `{s.name.split('/')[1]}`: {_words(s.statement)}" for s in theorems]
        lines.append("")
    lines.append(f"```\n{t.formula}\n```\n")
    if t.left and t.right:
        lines += [f"- left: {_words(t.left.description)}", f"- right: {_words(t.right.description)}"]
    overs = dict.fromkeys(s.over for s in theorems)
    lines.append(f"- over: {_words(t.over if len(overs) == 1 else _common(list(overs)))}")
    for kind in (k for k in EVIDENCE if k in t.evidence):
        lines.append(f"- evidence, {kind}" + (f": over {_words(t.ranges[kind])}" if kind in t.ranges else ""))
    lines += [f"- lacks {kinds}: {_words(why)}" for kinds, why in lacking(t.lacks)]
    if len(theorems) > 1 and len(statements) == 1:
        lines.append(f"- of {', '.join('`' + s.name.split('/')[1] + '`' for s in theorems)}")
    run = f"'{name}'" if "*" in name else name
    lines.append(f"\n`mixerzoo prove {run}`\n")
    return "\n".join(lines)


def _common(overs: list[str]) -> str:
    """What the hypotheses of a mixer's theorems share: all but the number of its configurations."""
    shared = {re.sub(r"(one configuration|\d+ configurations)", "several configurations", o) for o in overs}
    return " / ".join(sorted(shared))


def _words(text: str) -> str:
    """Plain text, which Markdown shall not take for more: but for `code`."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*_<\[\]|])", r"\\\1", p) for p in parts)
