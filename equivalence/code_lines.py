"""How much code there is: lines that are neither blank, nor comments, nor docstrings."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

# Of the Triton core: what runs on the GPU and what launches it. The rest decides, checks or compiles.
KERNELS = (
    "chunk", "decay", "delta", "one_step", "recurrent", "scalar", "vector", "chunk_launch", "recurrent_launch"
)  # fmt: skip
_NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(source: str) -> int:
    """Lines of Python code in a source text."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
        ):
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def of_kernels() -> dict[str, int]:
    """Lines of code of each file of the kernels and their launches."""
    from ..kernels import triton_core

    folder = Path(triton_core.__file__).parent
    return {f"{name}.py": code_lines((folder / f"{name}.py").read_text(encoding="utf-8")) for name in KERNELS}
