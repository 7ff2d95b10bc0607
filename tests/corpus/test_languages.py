"""Languages by name, extension, first line and content."""

from __future__ import annotations

import pytest

from codemill.corpus import languages
from codemill.corpus.languages import LANGUAGES, detect, kind_of


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("a/b.py", "", "python"),
        ("A.PY", "", "python"),
        ("stubs/a.pyi", "", "python"),
        ("Makefile", "", "make"),
        ("Dockerfile.dev", "", "dockerfile"),
        ("src/CMakeLists.txt", "", "cmake"),
        ("requirements.txt", "", "text"),
        ("LICENSE-MIT", "", "text"),
        ("README", "", "text"),
        (".gitignore", "", "ignore-list"),
        ("app.tsx", "", "typescript"),
        ("app.ts", '<?xml version="1.0"?>\n<TS>', "xml"),
        ("run", "#!/usr/bin/env python3\n", "python"),
        ("run", "#!/usr/bin/env -S node --flag\n", "javascript"),
        ("run", "#!/bin/bash -e\n", "shell"),
        ("run", "#!/usr/bin/perl5.30 -w\n", "perl"),
        ("run", "#!/usr/bin/unheard-of\n", "unknown"),
        ("run", "#!", "unknown"),
        ("data", '<?xml version="1.0"?>', "xml"),
        ("a.h", "int f(void);\n", "c"),
        ("a.h", "namespace a {\n}\n", "c++"),
        ("a.h", "#import <X.h>\n  @interface A\n", "objective-c"),
        ("a.m", "@implementation A\n", "objective-c"),
        ("a.m", "function y = f(x)\n  y = x;\nend\n", "matlab"),
        ("a.m", "what is this", "unknown"),
        ("a.pl", "use strict;\nmy $x = 1;\n", "perl"),
        ("a.pl", ":- module(a, []).\n", "prolog"),
        ("a.v", "module top;\nendmodule\n", "verilog"),
        ("a.v", "Theorem t : True.\n", "coq"),
        ("a.inc", "<?php\n", "php"),
        ("a.cls", "\\ProvidesClass{a}\n", "tex"),
        ("a.xyz", "", "unknown"),
        (".py", "", "unknown"),
        ("noextension", "plain words", "unknown"),
    ],
)
def test_detection(path: str, text: str, language: str) -> None:
    assert detect(path, text) == language


def test_classes() -> None:
    kinds = {name: kind_of(name) for name in ("python", "html", "json", "markdown", "no such language")}
    assert list(kinds.values()) == ["programming", "markup", "data", "prose", "unknown"]


def test_no_key_belongs_to_two_languages() -> None:
    for field in ("extensions", "filenames", "interpreters"):
        keys = [key for language in LANGUAGES for key in getattr(language, field).split()]
        assert len(keys) == len(set(keys))
        assert all(key == key.lower() for key in keys)
    assert len(LANGUAGES) >= 30


def test_no_pattern_may_run_over_line_ends() -> None:
    """Tried at each of 20,000 line starts, one that does takes many seconds."""
    patterns = [pattern for choices, _ in languages._AMBIGUOUS.values() for _, pattern in choices]
    assert patterns
    assert [p for p in patterns if p.startswith(("^\\s", "(^\\s")) or "|^\\s" in p] == []
    assert detect("a.m", "\n" * 200_000 + "x") == "unknown"
