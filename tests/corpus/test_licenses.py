"""Licence names, expressions and tiers: what is joined never widens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.corpus.licenses import both, from_name, join, normalise, tier, worse


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("MIT", "permissive"),
        ("Apache-2.0 WITH LLVM-exception", "permissive"),
        ("MIT AND BSD-3-Clause", "permissive"),
        ("MPL-2.0", "weak-copyleft"),
        ("LGPL-2.1-or-later", "weak-copyleft"),
        ("GPL-3.0-only", "copyleft"),
        ("AGPL-3.0-or-later", "copyleft"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "weak-copyleft"),
        ("MIT OR GPL-3.0-only", "permissive"),
        ("MIT AND GPL-3.0-only", "copyleft"),
        ("(MIT OR GPL-3.0-only) AND MPL-2.0", "weak-copyleft"),
        ("MIT AND LicenseRef-Whatever", "unknown"),
        ("MIT OR LicenseRef-Whatever", "permissive"),
        ("LicenseRef-BSD", "permissive"),
        ("LicenseRef-LGPL-unversioned", "weak-copyleft"),
        ("LicenseRef-GPL-unversioned", "copyleft"),
        ("BUSL-1.1", "unknown"),
        ("CC-BY-NC-4.0", "unknown"),
        ("SSPL-1.0", "unknown"),
        ("nonsense", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_tiers(expression: str | None, wanted: str) -> None:
    assert tier(expression) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mit", "MIT"),
        ("The MIT License", "MIT"),
        ("BSD", "LicenseRef-BSD"),
        ("BSD License", "LicenseRef-BSD"),
        ("3-Clause BSD License", "BSD-3-Clause"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Apache 2", "Apache-2.0"),
        ("MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("Apache-2.0 or BSD-3-Clause", "Apache-2.0 OR BSD-3-Clause"),
        ("MIT, BSD 3-Clause", "MIT AND BSD-3-Clause"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("GPLv2", "GPL-2.0-only"),
        ("GNU General Public License v3 or later", "GPL-3.0-or-later"),
        ("GNU Lesser General Public License v2.1", "LGPL-2.1-only"),
        ("LGPL", "LicenseRef-LGPL-unversioned"),
        ("AGPLv3", "AGPL-3.0-only"),
        ("MPL 2.0", "MPL-2.0"),
        ("Mozilla Public License 2.0 (MPL 2.0)", "MPL-2.0"),
        ("Python Software Foundation License", "PSF-2.0"),
        ("Public Domain", "LicenseRef-Public-Domain"),
        ("Proprietary", None),
        ("MIT and something of my own", None),
        ("see LICENSE", None),
        ("", None),
    ],
)
def test_names_people_use(name: str, wanted: str | None) -> None:
    assert from_name(name) == wanted


@pytest.mark.parametrize("text", ["MIT", "mit or APACHE-2.0", "(MIT)", "GPL-3.0+", "MIT and (BSD-2-Clause or ISC)"])
def test_normal_form_is_a_fixed_point(text: str) -> None:
    once = normalise(text)
    assert once is not None
    assert normalise(once) == once


@pytest.mark.parametrize(
    "text", ["MIT OR", "AND MIT", "((((MIT", "MIT MIT", "not a licence", "(" * 100, "A" * 600, "MIT WITH"]
)
def test_what_is_no_expression_is_none(text: str) -> None:
    assert normalise(text) is None


@pytest.mark.parametrize(
    ("text_evidence", "declared", "wanted"),
    [
        ("MIT", None, "MIT"),
        (None, "MIT", "MIT"),
        (None, None, None),
        ("MIT", "MIT", "MIT"),
        ("BSD-3-Clause", "LicenseRef-BSD", "BSD-3-Clause"),
        ("MIT AND Apache-2.0", "MIT OR Apache-2.0", "MIT OR Apache-2.0"),
        ("GPL-3.0-only", "GPL-3.0-or-later", "GPL-3.0-or-later"),
        ("GPL-3.0-only", "LicenseRef-GPL-unversioned", "GPL-3.0-only"),
        ("GPL-3.0-only", "MIT", "GPL-3.0-only AND MIT"),
        ("BSD-3-Clause", "BSD-2-Clause", "BSD-3-Clause AND BSD-2-Clause"),
    ],
)
def test_a_text_and_a_declaration_side_by_side(
    text_evidence: str | None, declared: str | None, wanted: str | None
) -> None:
    assert join(text_evidence, declared) == wanted


def test_both_is_flat_and_without_repeats() -> None:
    assert both(["MIT AND ISC", "MIT", "Apache-2.0 OR GPL-2.0-only"]) == "MIT AND ISC AND (Apache-2.0 OR GPL-2.0-only)"
    assert both([]) is None


EXPRESSIONS = st.recursive(
    st.sampled_from(["MIT", "BSD-3-Clause", "MPL-2.0", "GPL-3.0-only", "LicenseRef-X"]),
    lambda inner: st.builds(lambda a, op, b: f"({a} {op} {b})", inner, st.sampled_from(["AND", "OR"]), inner),
    max_leaves=5,
)


@given(EXPRESSIONS, EXPRESSIONS)
def test_joining_is_never_laxer_than_either(first: str, second: str) -> None:
    joined = both([first, second])
    assert not worse(first, joined)
    assert not worse(second, joined)


@given(st.text(max_size=80))
def test_any_text_is_a_licence_name_or_none(text: str) -> None:
    found = from_name(text)
    assert found is None or normalise(found) is not None
