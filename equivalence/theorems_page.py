"""docs/theorems.md: the catalogue as a page, `mixerzoo prove --docs FILE`."""

from __future__ import annotations

import re
import textwrap
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
    """Every theorem as an entry, in Markdown; what is said alike of many mixers is one entry."""
    listed = list(theorems)
    counts = [(kind, sum(kind in t.evidence for t in listed)) for kind in EVIDENCE]
    rows = "".join(f"| {kind} | {n} | {len(listed) - n} |\n" for kind, n in counts)
    parts = [HEAD, f"{len(listed)} theorems:\n\n| evidence | have it | lack it |\n|---|---:|---:|\n{rows}"]
    sections: dict[str, dict[tuple[str, str], list[Theorem]]] = {}
    for t in listed:
        section = sections.setdefault(t.name.partition("/")[0], {})
        section.setdefault((_pattern(t.name), _without_source(t.statement)), []).append(t)
    for name, entries in sections.items():
        parts.append(f"## {GROUPS.get(name, name)}\n")
        parts += [_entry(statement, members) for (_, statement), members in entries.items()]
    return "\n".join(parts)


def _pattern(name: str) -> str:
    """mixers/gla/paper is one of mixers/*/paper."""
    return re.sub(r"^(\w+)/[^/]+/", r"\1/*/", name)


SOURCE = r" \(([^()]*arXiv[^()]*)\)"


def _without_source(statement: str) -> str:
    return re.sub(SOURCE, "", statement)


def _entry(statement: str, theorems: Sequence[Theorem]) -> str:
    t = theorems[0]
    names = [_pattern(t.name)] if len(theorems) > 3 else [s.name for s in theorems]
    lines = [f"### {', '.join(f'`{name}`' for name in names)}\n", f"{_wrapped(statement)}\n"]
    lines.append(f"```\n{t.formula}\n```\n")
    facts = {"left": t.left, "right": t.right}
    lines += [_item(f"{name}: {side.description}") for name, side in facts.items() if side is not None]
    overs = {
        re.sub(r"(one configuration|\d+ configurations)", "all configurations", s.over) for s in theorems
    }
    lines.append(_item(f"over: {t.over if len(theorems) == 1 else ' / '.join(sorted(overs))}"))
    for kind in (k for k in EVIDENCE if k in t.evidence):
        lines.append(_item(f"has {kind}" + (f", over {t.ranges[kind]}" if kind in t.ranges else "")))
    lines += [_item(f"lacks {kinds}: {why}") for kinds, why in lacking(t.lacks)]
    if len(theorems) > 1:
        lines.append(_item(f"of {', '.join(map(_member, theorems))}"))
    run = " ".join(f"'{name}'" if "*" in name else name for name in names)
    lines.append(f"\n`mixerzoo prove {run}`\n")
    return "\n".join(lines)


def _member(t: Theorem) -> str:
    source = re.search(SOURCE, t.statement)
    return f"`{t.name.split('/')[1]}`" + (f" ({source.group(1)})" if source else "")


def _item(text: str) -> str:
    return textwrap.indent(_wrapped(text, 108), "  ").replace("  ", "- ", 1)


def _wrapped(text: str, width: int = 110) -> str:
    """Plain text, which Markdown shall not take for more (but for `code`), in lines of this width."""
    parts = re.split(r"(`[^`]+`)", text)
    safe = "".join(p if p.startswith("`") else re.sub(r"([*_<\[\]|])", r"\\\1", p) for p in parts)
    return textwrap.fill(safe, width, break_long_words=False, break_on_hyphens=False)
