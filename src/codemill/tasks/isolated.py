"""A repository's tests and the answer in two processes: what each of them gets.

The judge gets the whole repository, with a stand-in for the answered function, or for the class that it is a method of. The
answer's process gets the program without its tests, its documentation and the output that examples in docstrings
expect, and with the answer's file. See `inside/suite_judge.py` for what goes on between the two.
"""

from __future__ import annotations

import ast
import doctest
import marshal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from codemill.core.errors import InputError
from codemill.sandbox import Call, Policy, Warm
from codemill.tasks.functions import (
    Function,
    FunctionNode,
    SourceFile,
    find_functions,
    indentation,
    parse,
    split_lines,
    walk_functions,
)
from codemill.tasks.harness import INSIDE, compiled_path, suite_request
from codemill.tasks.layout import NOT_IMPORTED, is_program_file, read_layout
from codemill.tasks.program import WARM_IMPORTS

REPOSITORY_BYTES = 24 << 20  # a larger one is not sent to every run
# What the judge's copy of an answered file calls, see `inside/suite_judge.py`.
STUB, ANSWER, CLASS = "__codemill_stub__", "__codemill_answer__", "__codemill_class__"
_DOCUMENTS = frozenset({".md", ".rst", ".ipynb", ".html", ".pdf", ".diff", ".patch", ".orig", ".log"})
_SCRIPTS = ("wire", "remote", "candidate", "run_tests", "suite_judge", "suite_candidate")
# What pytest imports of the standard library: done before the fork, it is done once.
_PYTEST_IMPORTS = (
    *(
        "argparse",
        "ast",
        "bdb",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "difflib",
        "doctest",
        "enum",
        "fnmatch",
    ),
    *("functools", "gettext", "glob", "importlib.metadata", "importlib.resources", "inspect", "io", "json", "locale"),
    *("logging", "pathlib", "pdb", "platform", "pprint", "shlex", "shutil", "statistics", "subprocess", "tempfile"),
    *("textwrap", "threading", "tokenize", "traceback", "types", "typing", "unittest", "unittest.mock", "uuid"),
    *("warnings", "zipfile", "faulthandler", "email.parser", "csv", "decimal", "fractions", "hashlib", "random"),
)


@dataclass(frozen=True, slots=True)
class Seam:
    """Where a repository is taken apart: around the answered function or, for a method, around its class.

    `qualname` is what the answer's process has, `whole_class` which of the two it is. `stub` is the answered file's text for
    the judge, with a stand-in. `blanked` is its pristine text without examples' output, of the same length. `mark` is put in
    at offset `mark_at` of it, before the `def` of a function with decorators: those are the judge's.
    """

    module: str
    qualname: str
    whole_class: bool
    stub: str
    blanked: str
    mark: str = ""
    mark_at: int = 0


@lru_cache(maxsize=512)
def find_seam(workspace: Path, path: str, start: int, end: int) -> Seam:
    """The seam for answers at characters `start` to `end` of a file. Raises `InputError` where there can be none."""
    check_size(workspace)
    module = read_layout(workspace).module_of(path)
    if module is None:
        raise InputError(f"{path}: cannot be imported by a name, so its tests cannot be run apart from an answer")
    source = _source(workspace, path)
    function = _function_around(source, start, end)
    if function is None or function.body is None:
        raise InputError(f"{path}: characters {start} to {end} are in no function that can be taken out")
    node = next(node for name, node, _ in walk_functions(source.tree) if name == function.qualname)
    owner = function.qualname.partition(".")[0] if "." in function.qualname else ""
    if owner and not any(ast.unparse(decorator) == "staticmethod" for decorator in node.decorator_list):
        return _around_class(source, path, module, owner)
    return _around_function(source, path, module, function, node)


@lru_cache(maxsize=16)
def _source(workspace: Path, path: str) -> SourceFile:
    """A pristine file, read and parsed once for all the tasks in it."""
    return SourceFile((workspace / path).read_bytes().decode("utf-8"), path)


def _around_function(source: SourceFile, path: str, module: str, function: Function, node: FunctionNode) -> Seam:
    assert function.body is not None
    text, body, at = source.text, function.body, source.start_of(node.lineno)
    indent = indentation(source.lines[node.lineno - 1])
    statements = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    inner = indentation(source.lines[statements[0].lineno - 1])
    given = ", ".join(f"{name!r}: {name}" for name in _parameters(node))
    call = f"{inner}return {ANSWER}({{{given}}})"
    return Seam(
        module=module,
        qualname=function.qualname,
        whole_class=False,
        stub=f"{text[:at]}{indent}@{STUB}\n{text[at : body.start]}{call}{text[body.end :]}",
        blanked=without_expected_output(text, path),
        mark=f"{indent}@{ANSWER}\n" if node.decorator_list else "",
        mark_at=at,
    )


def _around_class(source: SourceFile, path: str, module: str, name: str) -> Seam:
    nodes = [node for node in source.tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if len(nodes) != 1:
        raise InputError(f"{path}: the class {name} cannot be taken out: it is not defined once, at the top level")
    first = min([nodes[0].lineno, *(decorator.lineno for decorator in nodes[0].decorator_list)])
    last = nodes[0].end_lineno or first
    text, begin, end = source.text, source.start_of(first), source.end_of(last)
    return Seam(
        module=module,
        qualname=name,
        whole_class=True,
        stub=f"{text[:begin]}{name} = {CLASS}(){text[end:]}",
        blanked=without_expected_output(text, path),
    )


def _function_around(source: SourceFile, start: int, end: int) -> Function | None:
    for function in find_functions(source):
        if function.body is not None and function.body.start <= start and end <= function.body.end:
            return function
    return None


def _parameters(node: FunctionNode) -> list[str]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in named if argument is not None]


@lru_cache(maxsize=16)
def without_expected_output(text: str, path: str) -> str:
    """A Python file's text with blanks in place of what its docstrings' examples expect; as long as it was."""
    if ">>>" not in text:
        return text
    try:
        tree = parse(text, path)
    except InputError:
        return text
    lines = split_lines(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and ">>>" in node.value:
            _blank(lines, node)
    return "".join(lines)


def _blank(lines: list[str], node: ast.Constant) -> None:
    """Blank the expected output of one string's examples, line by line where the file's line is the string's."""
    assert isinstance(node.value, str)
    try:
        examples = doctest.DocTestParser().get_examples(node.value)
    except ValueError:  # not written as doctest wants it
        return
    for example in examples:
        first = node.lineno + example.lineno + example.source.count("\n")
        for number, wanted in enumerate(example.want.split("\n")[:-1], first):
            line = lines[number - 1] if number <= (node.end_lineno or 0) else ""
            place = line.find(wanted.strip())
            if wanted.strip() and place >= 0 and not line[:place].strip():
                blanks = " " * len(wanted.strip())
                lines[number - 1] = line[:place] + blanks + line[place + len(blanks) :]


@dataclass(frozen=True, slots=True)
class _Trees:
    """A pristine repository as both sides get it, the answered file apart."""

    judge: Mapping[str, bytes]
    candidate: Mapping[str, bytes]


@lru_cache(maxsize=4)
def _trees(workspace: Path) -> _Trees:
    files = {
        file.relative_to(workspace).as_posix(): file.read_bytes()
        for file in sorted(workspace.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }
    programs = {path for path in files if is_program_file(path)}
    folders = {str(PurePosixPath(path).parent) for path in programs} - {"."}
    shown = {}
    for path, data in files.items():
        if path in programs:
            shown[path] = _blanked_bytes(data, path)
        elif _is_data(path, folders):
            shown[path] = data
    for path in programs:
        compiled = compiled_path(path)
        if compiled in files and shown[path] == files[path]:
            shown[compiled] = files[compiled]
    return _Trees(files, shown)


def _blanked_bytes(data: bytes, path: str) -> bytes:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return data
    return without_expected_output(text, path).encode()


def _is_data(path: str, folders: set[str]) -> bool:
    """Whether a file that is no program is a package's own data: it lies in or below a folder with programs, and is neither
    documentation nor anything of the tests."""
    pure = PurePosixPath(path)
    if pure.suffix in _DOCUMENTS or pure.suffix in (".pyc", ".py") or NOT_IMPORTED.intersection(pure.parts[:-1]):
        return False
    # A Python file in its place would be one of the program.
    return is_program_file(f"{pure.with_suffix('')}_.py") and any(str(above) in folders for above in pure.parents)


def check_size(workspace: Path) -> None:
    """Raises `InputError` for a repository that is too large to be sent to every run."""
    size = _size(workspace)
    if size > REPOSITORY_BYTES:
        raise InputError(f"{workspace}: {size:,} bytes; tests are run apart up to {REPOSITORY_BYTES:,}")


@lru_cache(maxsize=16)
def _size(workspace: Path) -> int:
    return sum(file.stat().st_size for file in workspace.rglob("*") if file.is_file() and not file.is_symlink())


def warm_for(environment: Path | None) -> Warm:
    return Warm(
        modules=tuple(INSIDE / f"{name}.py" for name in _SCRIPTS),
        imports=tuple(dict.fromkeys((*WARM_IMPORTS, *_PYTEST_IMPORTS))),
        readable=(environment,) if environment else (),
    )


@dataclass(frozen=True, slots=True)
class IsolatedRun:
    """The judge's call and the answer's, joined, and the nonce that the judge's report must carry."""

    calls: tuple[Call, Call]
    nonce: str


def isolated_run(
    workspace: Path,
    environment: Path | None,
    seam: Seam,
    path: str,
    answer: str,
    tests: Sequence[str],
    policy: Policy,
) -> IsolatedRun:
    """A run of tests by id. `answer` is the whole text of the answered file as the answer's process gets it."""
    request = suite_request(
        workspace,
        environment,
        doctests=[name for name in tests if name.startswith("doctest:")],
        pytest_ids=[name for name in tests if name.startswith("pytest:")],
    )
    trees, compiled = _trees(workspace), compiled_path(path)
    shared = frozenset(name for name in trees.candidate if name.endswith(".py"))
    stubbed = {**trees.judge, path: seam.stub.encode(), compiled: b""}
    answered = {**trees.candidate, path: answer.encode("utf-8", "surrogatepass")}
    answered.pop(compiled, None)
    judge = {"files": stubbed, "request": request, "shared": shared}
    candidate = {
        "files": answered,
        "roots": request["roots"],
        "module": seam.module,
        "qualname": seam.qualname,
        "captured": bool(seam.mark),
        "path": path,
    }
    return IsolatedRun(
        (
            Call(entry="suite_judge:main", payload=marshal.dumps(judge), policy=policy, result=True, folder=True),
            Call(entry="suite_candidate:main", payload=marshal.dumps(candidate), policy=policy),
        ),
        request["nonce"],
    )
