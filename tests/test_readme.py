"""The code of the README, and of pages like it, runs as written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/hybrid.md", "docs/transformers.md", "docs/proofs.md"])
def test_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    if page == "docs/transformers.md":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)  # what they write goes there
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 2
    names = {}
    for code in blocks:
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / target).exists(), f"{page} points to {target}"
