"""Licences of files from tags, notices, licence files and metadata; unknown is never clean."""

from __future__ import annotations

from importlib import metadata

import pytest
from corpus_support import GPL_NOTICE, MIT

from codemill.corpus.license_files import RepositoryLicenses, file_finding, is_license_file, metadata_license, recognise
from codemill.corpus.licenses import tier

# Installed wherever these tests run, each with its licence texts and a declaration by its authors.
INSTALLED = {
    "pytest": "MIT",
    "hypothesis": "MPL-2.0",
    "packaging": "Apache-2.0 OR BSD-2-Clause",
    "Jinja2": "BSD-3-Clause",
    "Pygments": "BSD-2-Clause",
    "huggingface_hub": "Apache-2.0",
    "license-expression": "Apache-2.0",
    "pip": "MIT",
}


def installed_evidence(name: str) -> dict[str, str]:
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    inside = [file for file in files if file.parts[0].endswith(".dist-info")]
    wanted = {file.name: file for file in inside if file.name == "METADATA" or is_license_file(file.name)}
    return {path: file.locate().read_text(encoding="utf-8") for path, file in wanted.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "wanted"), INSTALLED.items())
def test_real_packages(name: str, wanted: str) -> None:
    evidence = installed_evidence(name)
    texts = {path: text for path, text in evidence.items() if path != "METADATA"}
    assert RepositoryLicenses(evidence, evidence.__getitem__).folder(".").expression == wanted
    if texts and " OR " not in wanted:
        assert RepositoryLicenses(texts, texts.__getitem__).folder(".").expression == wanted  # by its text alone


BSD = (
    "Redistribution and use in source and binary forms, with or without modification, are permitted. "
    "Redistributions in binary form must reproduce the above copyright notice. "
)
ISC = "Permission to use this software for any purpose with or without fee is hereby granted, "


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (MIT, "MIT"),
        (MIT.replace("MIT License", "").upper(), "MIT"),
        (MIT.replace("\n", "\r\n").replace(" ", "  "), "MIT"),
        (MIT + "Except as contained in this notice, the name of X shall not be used in advertising.", "X11"),
        (BSD, "BSD-2-Clause"),
        (BSD + "Names may not be used to endorse or promote products derived from this software.", "BSD-3-Clause"),
        (BSD + "All advertising materials mentioning features must say so.", "BSD-4-Clause"),
        (ISC + "provided that this permission notice appear in all copies.", "ISC"),
        (ISC + "THE SOFTWARE IS PROVIDED AS IS.", "0BSD"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("Boost Software License - Version 1.0. machine-executable object code", "BSL-1.0"),
        (MIT + BSD, "MIT AND BSD-2-Clause"),
        ("Licensed under the Apache License, Version 2.0", "Apache-2.0"),
        (GPL_NOTICE, "GPL-3.0-or-later"),
        ("terms of the GNU Lesser General Public License as published by the Free Software Foundation; "
         "version 2.1 of the License", "LGPL-2.1-only"),
        (MIT + "The Software shall be used for good, not for evil: good, not evil.", None),
        (MIT + "'Commons Clause' License Condition v1.0", None),
        (MIT + "For non-commercial use.", None),
        (MIT + "word " * 500, None),
        ("All rights reserved.", None),
        ("", None),
    ],
)  # fmt: skip
def test_texts(text: str, wanted: str | None) -> None:
    assert recognise(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# SPDX-License-Identifier: MIT\n", "MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */", "GPL-2.0-only WITH Linux-syscall-note"),
        ("<!-- SPDX-License-Identifier: mit or apache-2.0 -->", "MIT OR Apache-2.0"),
        ("// SPDX-License-Identifier: MIT\n// SPDX-License-Identifier: ISC\n", "MIT AND ISC"),
        ("# SPDX-License-Identifier: my own\n", None),
        (GPL_NOTICE + "x = 1\n", "GPL-3.0-or-later"),
    ],
)
def test_a_files_own_header(text: str, wanted: str | None) -> None:
    found = file_finding(text)
    assert found is not None
    assert found.expression == wanted


@pytest.mark.parametrize("text", ["x = 1\n", "# MIT\n", 'name = "SPDX-License" \n', "\n" * 7000 + GPL_NOTICE])
def test_no_header_no_finding(text: str) -> None:
    assert file_finding(text) is None


@pytest.mark.parametrize(
    ("path", "text", "wanted"),
    [
        ("pyproject.toml", '[project]\nlicense = "MIT OR Apache-2.0"\n', "MIT OR Apache-2.0"),
        ("pyproject.toml", '[project]\nlicense = {text = "BSD-3-Clause"}\n', "BSD-3-Clause"),
        ("pyproject.toml", '[project]\nlicense = {file = "LICENSE"}\n', None),
        ("pyproject.toml", '[tool.poetry]\nlicense = "GPL-3.0-only"\n', "GPL-3.0-only"),
        ("pyproject.toml", '[project]\nclassifiers = ["License :: OSI Approved :: MIT License"]\n', "MIT"),
        ("pyproject.toml", "[project\nlicense = ", None),
        ("pyproject.toml", "project = 3\n", None),
        ("PKG-INFO", "License-Expression: MIT\nLicense: GPL\n", "MIT"),
        ("PKG-INFO", "License: BSD\nClassifier: License :: OSI Approved :: BSD License\n", "LicenseRef-BSD"),
        ("PKG-INFO", "License: UNKNOWN\n", None),
        ("PKG-INFO", "Name: x\n\nLicense: MIT\n", None),
        ("METADATA", "Classifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)\n", "MPL-2.0"),
        (
            "METADATA",
            "License: MIT\nClassifier: License :: OSI Approved :: Apache Software License\n",
            "Apache-2.0 AND MIT",
        ),
        ("setup.cfg", "[metadata]\nlicense = MIT\n", "MIT"),
        ("setup.cfg", "[metadata]\nlicense = %(x)s\n", None),
        ("setup.cfg", "no section\n", None),
        ("package.json", '{"license": "ISC"}', "ISC"),
        ("package.json", '{"licenses": [{"type": "MIT"}, {"type": "GPL-2.0"}]}', "GPL-2.0-only AND MIT"),
        ("package.json", '{"license": "UNLICENSED"}', None),
        ("package.json", "[" * 100_000, None),
        ("package.json", "[]", None),
        ("Cargo.toml", '[package]\nlicense = "MIT/Apache-2.0"\n', "MIT OR Apache-2.0"),
    ],
)
def test_metadata(path: str, text: str, wanted: str | None) -> None:
    assert metadata_license(path, text) == wanted


def licence_of(files: dict[str, str], path: str, text: str = "x = 1\n") -> str | None:
    return RepositoryLicenses(files, files.__getitem__).of(path, text).expression


@pytest.mark.parametrize(
    ("files", "path", "text", "wanted"),
    [
        ({"LICENSE": MIT}, "a/b/c.py", "", "MIT"),
        ({"LICENSE": MIT, "a/LICENSE": BSD}, "a/b/c.py", "", "BSD-2-Clause"),
        ({"LICENSE": MIT, "a/COPYING": GPL_NOTICE}, "b.py", "", "MIT"),
        ({"LICENSE": MIT, "a/COPYING": GPL_NOTICE}, "a/b.py", "", "GPL-3.0-or-later"),
        ({"LICENSE": MIT}, "a.py", GPL_NOTICE, "GPL-3.0-or-later"),
        ({"LICENSE": GPL_NOTICE}, "a.py", "# SPDX-License-Identifier: MIT\n", "MIT AND GPL-3.0-or-later"),
        ({"LICENSE": "mine, all mine"}, "a.py", "# SPDX-License-Identifier: MIT\n", None),
        ({"LICENSE": MIT}, "a.py", "# SPDX-License-Identifier: odd\n", None),
        ({"LICENSE": "mine, all mine", "pyproject.toml": '[project]\nlicense = "MIT"\n'}, "a.py", "", None),
        ({"LICENSE": MIT, "pyproject.toml": '[project]\nlicense = "GPL-3.0-only"\n'}, "a.py", "", "MIT AND GPL-3.0-only"),
        ({"LICENSE": GPL_NOTICE, "a/package.json": '{"license": "MIT"}'}, "a/b.js", "", "MIT AND GPL-3.0-or-later"),
        ({"LICENSE": MIT, "a/package.json": '{"license": "Apache-2.0"}'}, "a/b.js", "", "Apache-2.0"),
        ({"LICENSE": MIT, "docs/license.rst": "=====\nLicense\n=====\n\nUnder the MIT License.\n"}, "docs/a.rst", "", "MIT"),
        ({"LICENSE": MIT, "docs/license.rst": "License\n=======\n\n.. include:: ../LICENSE\n"}, "docs/a.rst", "", "MIT"),
        ({"LICENSE": MIT, "docs/LICENSE": "../LICENSE"}, "docs/a.rst", "", "MIT"),
        ({"LICENSE": MIT, "docs/license.rst": "Under the CC BY-NC 4.0 license.\n"}, "docs/a.rst", "", None),
        ({"LICENSE": "../elsewhere/LICENSE"}, "a.py", "", None),
        ({"LICENSE.APACHE": "Licensed under the Apache License, Version 2.0", "LICENSE.MIT": MIT}, "a.py", "", "Apache-2.0 AND MIT"),
        ({}, "a.py", "", None),
        ({}, "a.py", "# SPDX-License-Identifier: MIT\n", "MIT"),
        ({"license.py": "# a module about licences"}, "a.py", "", None),
    ],
)  # fmt: skip
def test_which_evidence_binds(files: dict[str, str], path: str, text: str, wanted: str | None) -> None:
    assert licence_of(files, path, text) == wanted


def test_unknown_is_never_clean() -> None:
    for text in ("# SPDX-License-Identifier: odd\n", "x = 1\n"):
        assert tier(licence_of({"LICENSE": "mine"}, "a.py", text)) == "unknown"
