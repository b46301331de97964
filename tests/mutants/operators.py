"""Which mutants a source file has: one small change each, made in the text, everything else as it was.

Not changed: docstrings, strings and f-strings (error messages among them), what a `raise` says, annotations,
`assert` (they are for the type checker), imports and `__all__`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

COMPARE: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitAnd: "|",
    ast.BitOr: "&",
}
# Another function of the same arguments.
OTHER = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "clamp_min": "clamp_max",
    "any": "all",
    "all": "any",
    "zeros_like": "ones_like",
    "zeros": "ones",
    "new_zeros": "new_ones",
    "sum": "mean",
    "mean": "sum",
    "cos": "sin",
    "sin": "cos",
}
# Methods without which a tensor is still one: x.f(...) becomes x.
DROPPED = frozenset(
    (
        *("abs", "bool", "clamp", "clamp_max", "clamp_min", "clone", "contiguous", "cos", "cumsum", "detach"),
        *("diff", "double", "exp", "expand", "expand_as", "flatten", "flip", "float", "log", "long"),
        *("masked_fill", "masked_fill_", "mul", "mul_", "neg", "repeat_interleave", "reshape", "rsqrt"),
        *("sigmoid", "sin", "softmax", "sqrt", "square", "tanh", "to", "transpose", "type_as", "unsqueeze"),
        *("view", "view_as"),
    )
)
PLACES = frozenset(("torch", "F", "tl", "math"))  # modules whose functions of one argument may be left out


@dataclass(frozen=True)
class Mutant:
    """`start` and `stop` are places in the source; `lines` those of the statement that holds the change."""

    file: str
    function: str
    line: str
    before: str
    after: str
    repeat: int
    start: int
    stop: int
    lines: tuple[int, int]
    inside: bool  # whether the change runs when the function does, not when the file is imported

    def __str__(self) -> str:
        """Its identity, which stays as long as its function keeps its name and its line its words."""
        again = f" (#{self.repeat})" if self.repeat > 1 else ""
        return f"{self.file}::{self.function}: {self.line}: {self.before} → {self.after}{again}"

    def apply(self, source: str) -> str:
        return source[: self.start] + self.after + source[self.stop :]


@dataclass(frozen=True)
class _Change:
    node: ast.AST
    before: str
    after: str
    start: int
    stop: int


class _Text:
    """Where the nodes of a syntax tree are in its text."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = source.splitlines()

    def place(self, line: int, column: int) -> int:
        """`column` counts bytes, as ast does."""
        text = self.lines[line - 1].encode()[:column].decode()
        return self.starts[line - 1] + len(text)

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.place(node.lineno, node.col_offset),  # type: ignore[attr-defined]
            self.place(node.end_lineno, node.end_col_offset),  # type: ignore[attr-defined]
        )

    def of(self, node: ast.AST) -> str:
        start, stop = self.span(node)
        return self.source[start:stop]


def _done(parent: ast.AST, child: ast.AST) -> bool:
    """A negative number is changed as a whole; `strict` of zip only looks at lengths."""
    negative = isinstance(parent, ast.UnaryOp) and isinstance(child, ast.Constant)
    return negative or (isinstance(child, ast.keyword) and child.arg == "strict")


def _docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _skipped(node: ast.AST) -> bool:
    """What is left alone, and all below it."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr, ast.Raise)):
        return True
    if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
        return True
    # An alias of a type: `Array = Any`, `Result = tuple[...]`.
    if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Subscript)):
        base = node.value.value if isinstance(node.value, ast.Subscript) else node.value
        return getattr(base, "id", "") in ("Any", "tuple", "Callable", "dict", "list")
    return isinstance(node, ast.stmt) and _docstring(node)


class _Walk:
    """Collects the changes of a file, in the order of the source."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.text = file, _Text(source)
        self.found: list[Mutant] = []
        self.seen: Counter[tuple[str, str, str, str]] = Counter()
        self.bound: set[str] = set()

    def visit(self, node: ast.AST, function: str, inside: bool, statement: ast.stmt | None) -> None:
        if _skipped(node):
            if isinstance(node, ast.Raise):
                self._add(self._whole(node, "pass"), function, inside, node)
            return
        if isinstance(node, ast.stmt):
            statement = node
        for change in self._changes(node):
            self._add(change, function, inside, statement)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = f"{function}.{node.name}" if function != "<module>" else node.name
            runs = isinstance(node, ast.FunctionDef)
            if isinstance(node, ast.FunctionDef):
                before, self.bound = self.bound, self.bound | _arguments(node)
                for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
                    self.visit(default, name, True, node)
            for child in node.body:
                self.visit(child, name, runs, None)
            if isinstance(node, ast.FunctionDef):
                self.bound = before
            return
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _done(node, child):
                    self.visit(child, function, inside, statement)
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.For, ast.With)):
            self.bound |= {n.id for n in ast.walk(node) if _stores(n)}

    def _add(self, change: _Change | None, function: str, inside: bool, statement: ast.stmt | None) -> None:
        if change is None:
            return
        line = self.text.lines[change.node.lineno - 1].strip()  # type: ignore[attr-defined]
        key = (function, line, change.before, change.after)
        self.seen[key] += 1
        at = statement if statement is not None else change.node
        first, final = at.lineno, at.end_lineno  # type: ignore[attr-defined]
        body = getattr(at, "body", None)
        if isinstance(body, list) and body:
            if isinstance(at, ast.FunctionDef):  # a default counts wherever the function runs
                first = body[0].lineno
            else:
                final = max(first, body[0].lineno - 1)
        self.found.append(
            Mutant(
                self.file,
                function,
                line,
                change.before,
                change.after,
                self.seen[key],
                change.start,
                change.stop,
                (first, final),
                inside,
            )
        )

    # ---------------------------------------------------------------- changes of one node

    def _whole(self, node: ast.AST, after: str) -> _Change | None:
        start, stop = self.text.span(node)
        before = self.text.source[start:stop]
        if before == after:
            return None
        return _Change(node, " ".join(before.split()), after, start, stop)

    def _between(
        self, node: ast.AST, left: ast.AST, right: ast.AST, before: str, after: str
    ) -> _Change | None:
        """The operator between two operands."""
        start, stop = self.text.span(left)[1], self.text.span(right)[0]
        gap = self.text.source[start:stop]
        at = gap.find(before)
        if at < 0:
            return None
        return _Change(node, before, after, start + at, start + at + len(before))

    def _changes(self, node: ast.AST) -> Iterator[_Change | None]:
        make = _MAKERS.get(type(node))
        if make is not None:
            yield from make(self, node)

    def compare(self, node: ast.Compare) -> Iterator[_Change | None]:
        operands = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, operands, operands[1:], strict=False):
            for after in COMPARE[type(op)]:
                yield self._between(node, left, right, _SIGN[type(op)], after)

    def arithmetic(self, node: ast.BinOp) -> Iterator[_Change | None]:
        if type(node.op) in ARITHMETIC and not (_is_text(node.left) or _is_text(node.right)):
            yield self._between(node, node.left, node.right, _SIGN[type(node.op)], ARITHMETIC[type(node.op)])

    def logic(self, node: ast.BoolOp) -> Iterator[_Change | None]:
        before, after = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield self._between(node, left, right, before, after)

    def sign(self, node: ast.UnaryOp) -> Iterator[_Change | None]:
        inner = self.text.of(node.operand)
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            value = node.operand.value
            if isinstance(value, int):  # most are dimensions
                yield self._whole(node, f"-{value + 1}")
                yield self._whole(node, inner if value == 1 else f"-{value - 1}")
                return
            if isinstance(value, float):
                yield self._whole(node, f"-{2 * value!r}")
        if isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
            yield self._whole(node, inner if not isinstance(node.op, ast.Not) else f"bool({inner})")

    def constant(self, node: ast.Constant) -> Iterator[_Change | None]:
        value = node.value
        if isinstance(value, bool):
            yield self._whole(node, str(not value))
        elif isinstance(value, int):
            yield self._whole(node, str(value + 1))
            if value > 1:
                yield self._whole(node, str(value - 1))
            elif value == 1:
                yield self._whole(node, "0")
        elif isinstance(value, float):
            yield self._whole(node, repr(2 * value) if value else "1.0")

    def choice(self, node: ast.IfExp | ast.If | ast.While) -> Iterator[_Change | None]:
        if not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
            yield self._whole(node.test, f"not ({self.text.of(node.test)})")

    def call(self, node: ast.Call) -> Iterator[_Change | None]:
        f = node.func
        name = f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "")
        if name in OTHER:
            start, stop = self.text.span(f)
            yield _Change(f, name, OTHER[name], stop - len(name), stop)
        module = isinstance(f, ast.Attribute) and isinstance(f.value, ast.Name) and f.value.id in PLACES
        if isinstance(f, ast.Attribute) and name in DROPPED and not module:
            yield self._whole(node, self.text.of(f.value))
        if module and len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.List):
            yield self._whole(node, f"({self.text.of(node.args[0])})")
        if len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
            a, b = node.args[:2]
            start, stop = self.text.span(a)[0], self.text.span(b)[1]
            between = self.text.source[self.text.span(a)[1] : self.text.span(b)[0]]
            after = f"{self.text.of(b)}{between}{self.text.of(a)}"
            if ast.dump(a) != ast.dump(b) and not (_is_text(a) or _is_text(b)):
                before = " ".join(self.text.source[start:stop].split())
                yield _Change(node, before, after, start, stop)
        for keyword in node.keywords:
            if keyword.arg not in (None, "strict") and not _is_text(keyword.value):
                yield self._without(node, keyword)

    def _without(self, node: ast.Call, keyword: ast.keyword) -> _Change:
        """The call without one keyword argument, and without the comma before or after it."""
        source = self.text.source
        start, stop = self.text.span(keyword)
        before = source[start:stop]
        ahead = source[:start].rstrip()
        if ahead.endswith(","):
            start = len(ahead) - 1
        else:
            tail = source[stop:].lstrip()
            if tail.startswith(","):
                stop += len(source[stop:]) - len(tail) + 1
        return _Change(keyword, " ".join(before.split()), "", start, stop)

    def attribute(self, node: ast.Attribute) -> Iterator[_Change | None]:
        if node.attr == "mT":
            yield self._whole(node, self.text.of(node.value))

    def bounds(self, node: ast.Slice) -> Iterator[_Change | None]:
        start, stop = (self._whole(x, "") if x is not None else None for x in (node.lower, node.upper))
        yield start
        yield stop

    def statement(self, node: ast.Expr | ast.AugAssign | ast.Assign) -> Iterator[_Change | None]:
        if isinstance(node, ast.Assign):
            names = {n.id for t in node.targets for n in ast.walk(t) if _stores(n)}
            attributes = any(isinstance(t, (ast.Attribute, ast.Subscript)) for t in node.targets)
            if not attributes and not names <= self.bound:
                return
        if isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
            sign = _SIGN[type(node.op)]
            yield self._between(node, node.target, node.value, sign, ARITHMETIC[type(node.op)])
        yield self._whole(node, "pass")

    def returned(self, node: ast.Return) -> Iterator[_Change | None]:
        if isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
            a, b = node.value.elts
            if not isinstance(a, ast.Starred) and not isinstance(b, ast.Starred):
                yield self._whole(node.value, f"{self.text.of(b)}, {self.text.of(a)}")


def _stores(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _arguments(node: ast.FunctionDef) -> set[str]:
    return {a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


_SIGN: dict[type[ast.AST], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.BitAnd: "&",
    ast.BitOr: "|",
}
_MAKERS = {
    ast.Compare: _Walk.compare,
    ast.BinOp: _Walk.arithmetic,
    ast.BoolOp: _Walk.logic,
    ast.UnaryOp: _Walk.sign,
    ast.Constant: _Walk.constant,
    ast.IfExp: _Walk.choice,
    ast.If: _Walk.choice,
    ast.While: _Walk.choice,
    ast.Call: _Walk.call,
    ast.Attribute: _Walk.attribute,
    ast.Slice: _Walk.bounds,
    ast.Expr: _Walk.statement,
    ast.Assign: _Walk.statement,
    ast.AugAssign: _Walk.statement,
    ast.Return: _Walk.returned,
}


def mutants(file: str, source: str) -> list[Mutant]:
    """All of a file's, in the order of its text. A few may not compile: the first guard sees that."""
    walk = _Walk(file, source)
    for statement in ast.parse(source).body:
        walk.visit(statement, "<module>", False, None)
    return list({str(m): m for m in reversed(walk.found)}.values())[::-1]
