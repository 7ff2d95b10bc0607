"""Test code made ready for the judge: every assert statement becomes a numbered test.

`assert a == b, why` turns into `assert @compare(n, a, b), why`: the operands are evaluated in the same order, the message is
as lazy, lines stay where they are, and what is compared is known when it does not hold. `@compare` can be no name in
source code, so no test and no answer can mean it.
"""

from __future__ import annotations

import ast
import builtins
import marshal
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

from codemill.core.errors import InputError

TEST_FILE, SETUP_FILE = "test.py", "setup.py"

_SIGNS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One assert statement: its comparison's operator ('' for none), whether the expected value stands on its left,
    and its first and last line, counted from 1."""

    sign: str
    swapped: bool
    line: int
    last_line: int


@dataclass(frozen=True, slots=True)
class TestCode:
    """Test code that is compiled. `missing` are the globals it reads that neither it, its setup nor Python defines."""

    __test__ = False

    test: CodeType
    setup: CodeType
    checks: tuple[Check, ...]
    missing: frozenset[str]

    def payload(self, names: tuple[str, ...], seconds: float) -> bytes:
        """What the judge gets, see `inside/judge.py`."""
        return marshal.dumps({
            "test": self.test,
            "setup": self.setup,
            "checks": [(check.sign, check.swapped, check.line, check.last_line) for check in self.checks],
            "names": names,
            "missing": self.missing.difference(names),
            "seconds": seconds,
        })  # fmt: skip


@lru_cache(maxsize=512)
def compile_test(test: str, setup: str, where: str) -> TestCode:
    """Compile test code and its setup. `where` names their origin in the `InputError` for what is not Python."""
    try:
        with warnings.catch_warnings():  # the warnings are about somebody's tests, not about what the user does
            warnings.simplefilter("ignore")
            tree = ast.parse(test, TEST_FILE)
            numbering = _Numbering()
            numbering.visit(tree)
            before = compile(setup, SETUP_FILE, "exec", dont_inherit=True)
            code = compile(tree, TEST_FILE, "exec", dont_inherit=True)
            missing = read_globals(test) - bound_globals(test) - bound_globals(setup) - set(dir(builtins))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{where}: the test does not compile: {error}") from None
    return TestCode(code, before, tuple(numbering.checks), frozenset(missing))


class _Numbering(ast.NodeTransformer):
    """Rewrites the condition of each assert statement, and lists them."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        condition, operands, sign, swapped = node.test, [node.test], "", False
        if isinstance(condition, ast.Constant):
            return node  # `assert True, "..."` says nothing about an answer
        name = "@true"
        match condition:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                name, operands, sign = "@compare", [left, right], _SIGNS[type(operator)]
                swapped = sign in ("==", "!=") and not _calls(left) and _calls(right)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                name, operands = "@false", [operand]
        number = ast.Constant(len(self.checks))
        self.checks.append(Check(sign, swapped, node.lineno, node.end_lineno or node.lineno))
        call = ast.Call(ast.Name(name, ast.Load()), [number, *operands], [])
        for made in (call, call.func, number):
            ast.copy_location(made, condition)
        node.test = call
        return node


def _calls(node: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


def read_globals(source: str) -> set[str]:
    """Globals that code reads, in whatever scope. Raises `SyntaxError` for what is not Python."""
    found: set[str] = set()
    for table, top in _scopes(source):
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return found


def bound_globals(source: str) -> set[str]:
    """Globals that code binds, by itself or in a function that declares them `global`. Raises `SyntaxError`."""
    found: set[str] = set()
    for table, top in _scopes(source):
        for s in table.get_symbols():
            if (s.is_assigned() or s.is_imported() or s.is_namespace()) and (top or s.is_declared_global()):
                found.add(s.get_name())
    return found


def _scopes(source: str) -> Iterator[tuple[symtable.SymbolTable, bool]]:
    """Every scope of a module, and whether it is the module's own."""
    module = symtable.symtable(source, TEST_FILE, "exec")
    tables = [module]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        yield table, table is module
