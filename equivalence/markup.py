"""What the pages that this package writes are made of: one style, tables, words. Nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

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


def document(title: str, body: Sequence[str], css: str = "") -> str:
    """A whole page; the parts of the body are HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def words(text: str) -> str:
    """Escaped, with `code` as code and N^1.2 as a power."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"N\^([\d.]+\d)", r"N<sup>\1</sup>", text)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Cells are HTML; `numeric` columns are set flush right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(row):
            parts.append(f'<{tag} class="n">{cell}</{tag}>' if i in numeric else f"<{tag}>{cell}</{tag}>")
        return "<tr>" + "".join(parts) + "</tr>"

    body = "\n".join(cells("td", row) for row in rows)
    return f'<div class="scroll"><table>\n{cells("th", head)}\n{body}\n</table></div>'


def definitions(terms: dict[str, str]) -> str:
    """A list of terms and what they are; both are HTML."""
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in terms.items()) + "</dl>"
