"""Which language a file is written in: by its name, its extension, first line, and a light look at its text.

Unsure is "unknown": a wrong language does more harm to a corpus than a missing file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

Kind = Literal["programming", "markup", "data", "prose", "unknown"]

UNKNOWN = "unknown"
HEAD = 20_000  # characters looked at to tell languages that share an extension apart


@dataclass(frozen=True, slots=True)
class Language:
    """A language as we name it. Extensions, file names, interpreters: lower case, space-separated."""

    name: str
    kind: Kind
    extensions: str = ""
    filenames: str = ""
    interpreters: str = ""


LANGUAGES = (
    Language("python", "programming", "py pyi pyw wsgi", "sconstruct sconscript wscript", "python pypy"),
    Language("cython", "programming", "pyx pxd pxi"),
    Language("javascript", "programming", "js mjs cjs jsx", "jakefile", "node nodejs deno bun"),
    Language("typescript", "programming", "ts mts cts tsx", "", "ts-node tsx"),
    Language("java", "programming", "java"),
    Language("kotlin", "programming", "kt kts"),
    Language("scala", "programming", "scala sc sbt", "", "scala"),
    Language("groovy", "programming", "groovy gradle", "jenkinsfile", "groovy"),
    Language("clojure", "programming", "clj cljs cljc edn"),
    Language("c", "programming", "c h"),
    Language("c++", "programming", "cc cpp cxx c++ hh hpp hxx h++ ipp tpp inl"),
    Language("objective-c", "programming", "m mm"),
    Language("cuda", "programming", "cu cuh"),
    Language("c#", "programming", "cs csx"),
    Language("f#", "programming", "fs fsi fsx"),
    Language("visual-basic", "programming", "vb vbs bas"),
    Language("go", "programming", "go"),
    Language("rust", "programming", "rs"),
    Language("zig", "programming", "zig"),
    Language("swift", "programming", "swift"),
    Language("dart", "programming", "dart"),
    Language("d", "programming", "d di"),
    Language("nim", "programming", "nim nims"),
    Language("crystal", "programming", "cr", "", "crystal"),
    Language("ruby", "programming", "rb rake gemspec ru", "rakefile gemfile vagrantfile podfile", "ruby"),
    Language("php", "programming", "php phtml php5", "", "php"),
    Language("perl", "programming", "pl pm t", "makefile.pl", "perl"),
    Language("prolog", "programming", "prolog", "", "swipl"),
    Language("lua", "programming", "lua rockspec", "", "lua luajit"),
    Language("r", "programming", "r", ".rprofile", "rscript"),
    Language("julia", "programming", "jl", "", "julia"),
    Language("matlab", "programming", "matlab", "", "octave"),
    Language("fortran", "programming", "f f77 f90 f95 f03 f08 for"),
    Language("ada", "programming", "ada adb ads"),
    Language("pascal", "programming", "pas dpr"),
    Language("cobol", "programming", "cob cbl"),
    Language("haskell", "programming", "hs lhs", "", "runhaskell runghc"),
    Language("ocaml", "programming", "ml mli", "", "ocaml"),
    Language("elm", "programming", "elm"),
    Language("erlang", "programming", "erl hrl", "rebar.config", "escript"),
    Language("elixir", "programming", "ex exs", "", "elixir"),
    Language("scheme", "programming", "scm ss rkt", "", "guile racket"),
    Language("common-lisp", "programming", "lisp lsp cl asd", "", "sbcl"),
    Language("emacs-lisp", "programming", "el", ".emacs"),
    Language("shell", "programming", "sh bash zsh ksh bats", ".bashrc .zshrc .profile", "sh bash zsh dash ksh ash"),
    Language("fish", "programming", "fish", "", "fish"),
    Language("powershell", "programming", "ps1 psm1 psd1", "", "pwsh powershell"),
    Language("batch", "programming", "bat cmd"),
    Language("awk", "programming", "awk", "", "awk gawk mawk"),
    Language("tcl", "programming", "tcl", "", "tclsh wish"),
    Language("vimscript", "programming", "vim", ".vimrc _vimrc"),
    Language("sql", "programming", "sql ddl"),
    Language("assembly", "programming", "asm s nasm"),
    Language("verilog", "programming", "sv svh vh"),
    Language("vhdl", "programming", "vhd vhdl"),
    Language("coq", "programming", "coq"),
    Language("lean", "programming", "lean"),
    Language("solidity", "programming", "sol"),
    Language("glsl", "programming", "glsl vert frag comp"),
    Language("wgsl", "programming", "wgsl"),
    Language("terraform", "programming", "tf tfvars hcl"),
    Language("nix", "programming", "nix"),
    Language("starlark", "programming", "bzl star", "build build.bazel workspace workspace.bazel tiltfile"),
    Language("cmake", "programming", "cmake", "cmakelists.txt"),
    Language("make", "programming", "mk mak", "makefile gnumakefile makefile.am makefile.in", "make"),
    Language("meson", "programming", "", "meson.build meson_options.txt"),
    Language("dockerfile", "programming", "dockerfile containerfile", "dockerfile containerfile"),
    Language("protobuf", "programming", "proto"),
    Language("graphql", "programming", "graphql gql"),
    Language("thrift", "programming", "thrift"),
    Language("vue", "programming", "vue"),
    Language("svelte", "programming", "svelte"),
    Language("jinja", "markup", "jinja jinja2 j2"),
    Language("html", "markup", "html htm xhtml"),
    Language("css", "markup", "css"),
    Language("scss", "markup", "scss sass"),
    Language("less", "markup", "less"),
    Language("tex", "markup", "tex sty bib ltx"),
    Language("jupyter", "data", "ipynb"),
    Language("json", "data", "json jsonc json5 geojson webmanifest jsonl ndjson", ".eslintrc .prettierrc .babelrc"),
    Language("yaml", "data", "yaml yml", ".clang-format .clang-tidy"),
    Language("toml", "data", "toml", "pipfile"),
    Language(
        "ini",
        "data",
        "ini cfg conf properties desktop service",
        ".editorconfig .gitconfig .coveragerc .flake8",
    ),
    Language("xml", "data", "xml xsd xsl xslt svg plist csproj vcxproj resx wsdl rss xaml"),
    Language("csv", "data", "csv tsv"),
    Language("diff", "data", "diff patch"),
    Language("gettext", "data", "po pot"),
    Language(
        "ignore-list",
        "data",
        "",
        ".gitignore .dockerignore .npmignore .gitattributes .mailmap manifest.in codeowners",
    ),
    Language("markdown", "prose", "md markdown mdx mkd"),
    Language("restructuredtext", "prose", "rst"),
    Language("asciidoc", "prose", "adoc asciidoc"),
    Language("org", "prose", "org"),
    Language(
        "text",
        "prose",
        "txt text",
        "license licence copying unlicense notice authors contributors readme changelog changes news todo",
    ),
)

# Extensions of several languages: what the text must show, in the order tried, and what it is when nothing does.
# Blanks at a line's start are [ \t]*: \s* runs over the line ends, and 20 kB of them would take many seconds.
_AMBIGUOUS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "h": (
        (
            ("objective-c", r"^[ \t]*(@interface|@protocol|@class|#import)\b"),
            (
                "c++",
                r"^[ \t]*(class\s+\w+|namespace\s+\w*|template\s*<|using\s+\w+|#include\s*<\w+>[ \t]*$)|\bstd::",
            ),
        ),
        "c",
    ),
    "m": (
        (
            ("objective-c", r"^[ \t]*(@interface|@implementation|@protocol|@end|#import)\b"),
            ("matlab", r"^[ \t]*(function\b.*|%.*|end(function)?[ \t]*;?|\w+[ \t]*=.*;)[ \t]*$"),
        ),
        UNKNOWN,
    ),
    "pl": (
        (
            ("prolog", r"^[ \t]*:-\s*\w+|^[a-z]\w*\(.*\)[ \t]*:-"),
            ("perl", r"^[ \t]*(use|my|our|sub|package|require)\b|[$@%]\w+"),
        ),
        UNKNOWN,
    ),
    "ts": ((("xml", r"\A\s*<(\?xml|!DOCTYPE TS|TS\b)"),), "typescript"),
    "v": (
        (
            ("coq", r"^[ \t]*(Require|Theorem|Lemma|Definition|Inductive|Proof|Qed|Fixpoint|Section)\b.*\.?"),
            ("verilog", r"^[ \t]*(module|endmodule|always|assign|wire|reg|`timescale|`include|`define)\b"),
        ),
        UNKNOWN,
    ),
    "fs": ((("glsl", r"^[ \t]*(#version|uniform|varying|precision)\b|\bgl_\w+"),), "f#"),
    "d": ((("make", r"^\S+\.o\s*:"),), "d"),
    "cls": ((("tex", r"^[ \t]*\\(ProvidesClass|NeedsTeXFormat|LoadClass)\b"),), UNKNOWN),
    "inc": (
        (("php", r"\A\s*<\?php"), ("c", r"^[ \t]*#\s*(include|define|ifdef|ifndef)\b")),
        UNKNOWN,
    ),
    "t": ((("perl", r"^[ \t]*(use|my|our|sub)\b"),), UNKNOWN),
    "cl": ((("common-lisp", r"^[ \t]*\((defun|defmacro|in-package|defpackage)\b"),), UNKNOWN),
    "s": ((("assembly", r"^[ \t]*[.;#@]|^[ \t]*\w+:|^[ \t]+(mov|push|pop|ld|add|jmp|call|ret)\w*\b"),), UNKNOWN),
    "sc": ((("scala", r"^[ \t]*(import|object|class|def|val)\b"),), UNKNOWN),
    "tsx": ((("xml", r"\A\s*<\?xml"),), "typescript"),
    "in": ((("c", r"^[ \t]*#\s*(undef|define|include)\b"),), UNKNOWN),
    "build": ((("starlark", r"^[ \t]*(load|cc_library|py_library|filegroup|package)\("),), UNKNOWN),
}


def _index(field: str) -> dict[str, str]:
    return {key: language.name for language in LANGUAGES for key in getattr(language, field).split()}


_KINDS: dict[str, Kind] = {language.name: language.kind for language in LANGUAGES}
_BY_EXTENSION = _index("extensions")
_BY_FILENAME = _index("filenames")
_BY_INTERPRETER = _index("interpreters")
_SHEBANG = re.compile(r"#![ \t]*(?:\S*/)?(\S+)(?:[ \t]+(.*))?")


def kind_of(language: str) -> Kind:
    """The class of a language that `detect` names; "unknown" for any other."""
    return _KINDS.get(language, "unknown")


def detect(path: str, text: str = "") -> str:
    """The language of a file, in lower case, or "unknown". `text` may be the file's beginning only."""
    name = PurePosixPath(path).name.lower()
    if name in _BY_FILENAME:
        return _BY_FILENAME[name]
    stem, dot, extension = name.rpartition(".")
    if dot and stem:
        if extension in _AMBIGUOUS:
            return _told_apart(extension, text[:HEAD])
        if extension in _BY_EXTENSION:
            return _BY_EXTENSION[extension]
    if stem in ("dockerfile", "containerfile", "makefile"):
        return _BY_FILENAME[stem]
    if stem in ("license", "licence", "copying", "readme") or name.startswith(("license-", "licence-")):
        return "text"
    return _by_first_line(text)


def _told_apart(extension: str, text: str) -> str:
    choices, otherwise = _AMBIGUOUS[extension]
    for language, pattern in choices:
        if re.search(pattern, text, re.MULTILINE):
            return language
    return otherwise


def _by_first_line(text: str) -> str:
    line = text[:200].split("\n", 1)[0]
    found = _SHEBANG.match(line)
    if found:
        program = found[1]
        if program == "env":
            words = [w for w in (found[2] or "").split() if not w.startswith("-") and "=" not in w]
            program = words[0].rsplit("/", 1)[-1] if words else ""
        return _BY_INTERPRETER.get(re.sub(r"[\d.]+$", "", program.lower()), UNKNOWN)
    if line.lstrip().startswith("<?xml"):
        return "xml"
    return "php" if line.startswith("<?php") else UNKNOWN
