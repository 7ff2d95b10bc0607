"""Candidate functions of a source file and the pieces of them that can be asked for.

Two kinds of question. *body*: everything after the signature and the docstring. *span*: a run of whole neighbouring
statements inside the body, so that its lines are whole and `pass` can always stand in its place. For both,
`prefix + gold + suffix` is the file, character for character; `gold` starts with its indentation and ends before its
line break, so an answer without a final line break fits as well as one with it.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from codemill.core.errors import InputError

Kind = Literal["body", "span"]
MAX_SPAN_LINES = 8
MIN_GOLD_CHARACTERS = 8  # of anything but white space: less than that is a guess, not a question

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Piece:
    """A question cut out of a file: the characters `start` to `end` of its text are the answer."""

    kind: Kind
    start: int
    end: int
    lines: int


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a file. Lines count from 1 and include the decorators; `body` is None where nothing can be asked.

    `first_line` is the line that Python's code object reports as well (that of the first decorator, if any).
    `rejected` says why the function cannot be a task, and is empty when it can.
    """

    qualname: str
    first_line: int
    last_line: int
    body: Piece | None
    rejected: str = ""


class SourceFile:
    """A parsed Python file with exact positions. Raises `InputError` for text that does not parse.

    Lines are those of the Python tokenizer (`\\n`, `\\r\\n` and `\\r` end one, form feeds and the like do not), and the
    columns of `ast`, which count UTF-8 bytes, are never used: every piece consists of whole lines.
    """

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.lines = split_lines(text)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line))
        self.tree = parse(text, name)

    def start_of(self, line: int) -> int:
        """Offset of the first character of a line."""
        return self.starts[line - 1]

    def end_of(self, line: int) -> int:
        """Offset behind the last character of a line, its line break left out."""
        return self.starts[line - 1] + len(self.lines[line - 1].rstrip("\r\n"))

    def piece(self, kind: Kind, first: int, last: int) -> Piece:
        return Piece(kind, self.start_of(first), self.end_of(last), last - first + 1)


def parse(text: str, name: str) -> ast.Module:
    """`ast.parse` whose every failure on hostile text is an `InputError` that names the file."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"{name}:{error.lineno or 1}: does not parse as Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise InputError(f"{name}: does not parse as Python: {type(error).__name__}: {error}") from None


def split_lines(text: str) -> list[str]:
    """Lines with their breaks, as Python's tokenizer counts them."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", text)


def walk_functions(tree: ast.Module) -> Iterator[tuple[str, FunctionNode, bool]]:
    """Qualified name, node and whether it is nested in another function; classes are entered, order is the file's."""

    def visit(node: ast.AST, prefix: str, nested: bool) -> Iterator[tuple[str, FunctionNode, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode):
                yield prefix + child.name, child, nested
                yield from visit(child, f"{prefix}{child.name}.<locals>.", True)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, f"{prefix}{child.name}.", nested)
            elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
                yield from visit(child, prefix, nested)

    yield from visit(tree, "", False)


def find_functions(source: SourceFile) -> list[Function]:
    """Every function of the file, in order, the unusable ones with their reason."""
    found = list(walk_functions(source.tree))
    count = Counter(qualname for qualname, _, _ in found)
    return [_describe(source, qualname, node, nested, count[qualname] > 1) for qualname, node, nested in found]


def _describe(source: SourceFile, qualname: str, node: FunctionNode, nested: bool, repeated: bool) -> Function:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    last = node.end_lineno or node.lineno
    reason, body = _exclusion(node, nested, repeated), None
    if not reason:
        reason, body = _body_piece(source, node)
    return Function(qualname, first, last, body, reason)


def _exclusion(node: FunctionNode, nested: bool, repeated: bool) -> str:
    """Why a function is not asked for, before its text is looked at."""
    if nested:
        return "nested in another function"
    if isinstance(node, ast.AsyncFunctionDef):
        return "async"
    decorators = {_last_name(decorator) for decorator in node.decorator_list}
    if "overload" in decorators:
        return "overload"
    if decorators & {"abstractmethod", "abstractproperty", "abstractclassmethod", "abstractstaticmethod"}:
        return "abstract"
    if repeated:
        return "defined more than once"
    statements = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if all(_is_trivial(statement) for statement in statements):
        return "trivial body"
    return ""


def _last_name(node: ast.expr) -> str:
    while isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_trivial(statement: ast.stmt) -> bool:
    """`pass`, a bare constant, `raise NotImplementedError`, and returning nothing or a constant."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()) | ast.Return(value=None | ast.Constant()):
            return True
        case ast.Raise(exc=ast.expr() as raised):
            return _last_name(raised) in {"NotImplementedError", "NotImplemented"}
    return False


def _body_piece(source: SourceFile, node: FunctionNode) -> tuple[str, Piece | None]:
    """The body behind signature and docstring as whole lines, comments in front of it included."""
    has_docstring = ast.get_docstring(node, clean=False) is not None
    statements = node.body[1:] if has_docstring else node.body
    above = node.body[0].end_lineno if has_docstring else _signature_end(source, node)
    assert above is not None  # set by the parser on every statement
    first = above + 1
    if statements[0].lineno <= above:
        return "body on the signature's or the docstring's line", None
    while not source.lines[first - 1].strip():
        first += 1  # blank lines between docstring and code stay in the prefix
    return "", source.piece("body", first, node.end_lineno or first)


def _signature_end(source: SourceFile, node: FunctionNode) -> int:
    """The line of the colon. Found from the back: the lines between it and the first statement are blank or comments."""
    line = node.body[0].lineno
    start = min([line, *(d.lineno for d in getattr(node.body[0], "decorator_list", []))])
    if start <= node.lineno:
        return node.lineno
    above = start - 1
    while above > node.lineno and (not source.lines[above - 1].strip() or _is_comment(source.lines[above - 1])):
        above -= 1
    # A first statement that stands on the line of the colon of a signature of several lines.
    indent = len(source.lines[start - 1]) - len(source.lines[start - 1].lstrip())
    return start if node.body[0].col_offset != indent else above


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def span_piece(source: SourceFile, node: FunctionNode, body: Piece, key: str) -> Piece | None:
    """A run of whole statements inside the body, drawn by `key`; None where the body has no proper part to ask for.

    All runs of neighbouring statements of one block with at most `MAX_SPAN_LINES` lines are equally likely; the
    draw is BLAKE2b of the key, so it depends on nothing else in the file's processing.
    """
    choices = []
    for block in _blocks(node):
        for i in range(len(block)):
            for j in range(i, len(block)):
                piece = _span(source, block[i], block[j])
                if piece is None or piece.lines > MAX_SPAN_LINES:
                    break
                inside = body.start <= piece.start and piece.end <= body.end
                whole = (piece.start, piece.end) == (body.start, body.end)
                telling = not all(_is_trivial(statement) for statement in block[i : j + 1])
                if inside and not whole and telling and _has_content(source.text[piece.start : piece.end]):
                    choices.append(piece)
    return choices[draw(key, len(choices))] if choices else None


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """Statement lists inside a function, not those of functions and classes nested in it."""
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
            yield block
            for statement in block:
                if not isinstance(statement, FunctionNode | ast.ClassDef):
                    yield from _blocks(statement)
    for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
        yield from _blocks(part)


def _span(source: SourceFile, first: ast.stmt, last: ast.stmt) -> Piece | None:
    """The lines of a run of statements, None when one of them shares a line with something else."""
    start, end = _first_line(first), last.end_lineno or last.lineno
    line = source.lines[start - 1]
    indent = len(line) - len(line.lstrip())  # white space, hence the same count in bytes and in characters
    column = first.col_offset if start == first.lineno else indent
    code_after = source.lines[end - 1].encode()[last.end_col_offset or 0 :].decode(errors="replace").strip()
    if column != indent or line.lstrip().startswith(("elif", "else")) or not _only_comment(code_after):
        return None
    return source.piece("span", start, end)


def _only_comment(rest: str) -> bool:
    return not rest or rest.startswith("#")


def _first_line(statement: ast.stmt) -> int:
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


def _has_content(text: str) -> bool:
    code = "".join(line for line in split_lines(text) if not _is_comment(line))
    return len("".join(code.split())) >= MIN_GOLD_CHARACTERS


def draw(key: str, choices: int) -> int:
    """A number below `choices` from BLAKE2b of `key`: the same on every machine, whatever else was drawn before."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % choices


def share(key: str) -> float:
    """A number in [0, 1) from BLAKE2b of `key`."""
    return draw(key, 1 << 53) / (1 << 53)


def indentation(text: str) -> str:
    """The white space in front of the first line of `text`."""
    return text[: len(text) - len(text.lstrip(" \t\f"))]


def parses(text: str) -> bool:
    try:
        parse(text, "answer")
    except InputError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring with examples. `line` counts from 0, as `doctest` wants it."""

    qualname: str  # empty for the module's own
    text: str
    line: int


def example_docstrings(tree: ast.Module) -> list[Docstring]:
    """Docstrings with `>>>` of the module, its classes and its functions that are not nested in functions."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FunctionNode | ast.ClassDef):
                add(child, prefix + child.name)
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.If | ast.Try):
                visit(child, prefix)

    def add(node: ast.Module | FunctionNode | ast.ClassDef, qualname: str) -> None:
        text = ast.get_docstring(node, clean=False)
        if text and ">>>" in text:
            found.append(Docstring(qualname, text, node.body[0].lineno - 1))

    add(tree, "")
    visit(tree, "")
    return found
