"""Context for a task: short outlines of the repository's own modules that a file imports."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from codemill.core.contracts import ContextFile
from codemill.core.errors import InputError
from codemill.tasks.functions import FunctionNode, parse
from codemill.tasks.layout import Layout

MAX_FILES = 3
MAX_CHARACTERS = 1200  # of one outline


def context_files(
    path: str, tree: ast.Module, modules: Mapping[str, str], texts: Mapping[str, str]
) -> tuple[ContextFile, ...]:
    """Outlines of at most `MAX_FILES` modules that the file at `path` imports, in the order of its imports.

    `modules` maps dotted names to paths, `texts` paths to file texts.
    """
    own = next((name for name, known in modules.items() if known == path), "")
    package = own if path.endswith("/__init__.py") else own.rpartition(".")[0]
    found: list[ContextFile] = []
    for name in _imported(tree, package):
        target = modules.get(name)
        if target is None or target == path or any(file.path == target for file in found):
            continue
        text = outline(texts[target]) if target in texts else ""
        if text:
            found.append(ContextFile(path=target, text=text))
        if len(found) == MAX_FILES:
            break
    return tuple(found)


def module_paths(layout: Layout, paths: Mapping[str, str]) -> dict[str, str]:
    """Dotted module names of a repository's Python files."""
    return {name: path for path in paths if path.endswith(".py") and (name := layout.module_of(path))}


def _imported(tree: ast.Module, package: str) -> list[str]:
    """Dotted names that may be modules, from the imports at the top of a file; relative ones resolved."""
    names = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return list(dict.fromkeys(names))


def outline(text: str) -> str:
    """Signatures with the first line of their docstrings; '' for a file that does not parse. Never a body."""
    try:
        tree = parse(text, "context")
    except InputError:
        return ""
    lines: list[str] = []
    for node in tree.body:
        lines += _entry(node, "")
    kept, size = [], 0
    for line in lines:
        size += len(line) + 1
        if size > MAX_CHARACTERS:
            break
        kept.append(line)
    return "\n".join(kept) + "\n" if kept else ""


def _entry(node: ast.stmt, indent: str) -> list[str]:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base)[:60] for base in node.bases)
        lines = [f"{indent}class {node.name}({bases}):" if bases else f"{indent}class {node.name}:"]
        lines += _summary(node, indent + "    ")
        for child in node.body:
            if isinstance(child, FunctionNode):
                lines += _entry(child, indent + "    ")
        return lines
    if isinstance(node, FunctionNode) and (not node.name.startswith("_") or node.name == "__init__"):
        keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{indent}{keyword} {node.name}({ast.unparse(node.args)}){returns}:"[:200]
        return [signature, *(_summary(node, indent + "    ") or [f"{indent}    ..."])]
    return []


def _summary(node: ast.ClassDef | FunctionNode, indent: str) -> list[str]:
    text = (ast.get_docstring(node) or "").strip().split("\n")[0].strip()
    text = text.replace("\\", "").replace('"""', "")[:100]
    return [f'{indent}"""{text}"""'] if text else []
