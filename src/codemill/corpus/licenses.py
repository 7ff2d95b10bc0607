"""Licences as SPDX expressions: reading the names people use, joining evidence, sorting into tiers.

Joined evidence never widens: where two sources disagree, both bind, and the stricter one decides the tier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from license_expression import Licensing

Tier = Literal["permissive", "weak-copyleft", "copyleft", "unknown"]
# From what may be learnt from freely to what may not be judged at all. AND takes the worst, OR the best.
_RANK: dict[Tier, int] = {"permissive": 0, "weak-copyleft": 1, "copyleft": 2, "unknown": 3}

_PERMISSIVE = re.compile(
    r"MIT|MIT-0|MIT-CMU|X11|Expat|0BSD|BSD-[1234]-Clause.*|ISC|Apache-\d.*|PSF-2\.0|Python-2\.0(\.1)?|CNRI-Python.*"
    r"|Zlib|zlib-acknowledgement|Libpng|libpng-2\.0|BSL-1\.0|Unlicense|CC0-1\.0|WTFPL|NCSA|PostgreSQL|HPND.*|curl"
    r"|BlueOak-1\.0\.0|Artistic-2\.0|AFL-[\d.]+|MulanPSL-\d\.0|UPL-1\.0|Unicode-.*|W3C.*|TCL|ZPL-[\d.]+|FTL|NTP"
    r"|OpenSSL|SSH-OpenSSH|ICU|MS-PL|ECL-2\.0|EFL-[\d.]+|Fair|NIST-PD.*|PDDL-1\.0|Beerware|CC-BY-[\d.]+"
    r"|LicenseRef-BSD|LicenseRef-Public-Domain"
)
_WEAK = re.compile(
    r"MPL-[\d.]+.*|LGPL-.*|EPL-[\d.]+|CDDL-[\d.]+|CPL-1\.0|MS-RL|APSL-.*|IPL-1\.0|LicenseRef-LGPL-unversioned"
)
_COPYLEFT = re.compile(
    r"GPL-.*|AGPL-.*|OSL-.*|EUPL-.*|CECILL-(1|2)\..*|CC-BY-SA-.*|Sleepycat|GFDL-.*|QPL-1\.0|LicenseRef-A?GPL-unversioned"
)
_LINKING_EXCEPTIONS = re.compile(r"(Classpath|GCC|Bison|Autoconf|Libtool|Font|Linux-syscall|Bootloader)-.*")


@lru_cache(maxsize=1)
def _licensing() -> Licensing:
    from license_expression import get_spdx_licensing

    return get_spdx_licensing()


def _parsed(expression: str) -> Any | None:
    """The expression's tree, None when it is not one made of SPDX identifiers and LicenseRef names."""
    from license_expression import ExpressionError, ExpressionParseError

    try:
        tree = _licensing().parse(expression, validate=False)
        unknown = _licensing().unknown_license_keys(tree) if tree is not None else []
    except (ExpressionError, ExpressionParseError, ValueError, TypeError, RecursionError):
        return None
    return tree if all(re.fullmatch(r"LicenseRef-[\w.-]+", key) for key in unknown) else None


@lru_cache(maxsize=4096)
def normalise(text: str) -> str | None:
    """An SPDX expression (SPDX 2.3, annex D) in its standard spelling; None when the text is not one."""
    if not text.strip() or len(text) > 500 or text.count("(") > 50:
        return None
    tree = _parsed(text)
    return None if tree is None else str(tree.render())


@lru_cache(maxsize=4096)
def leaves(expression: str) -> frozenset[str]:
    """The licences that an expression names, exceptions left out."""
    tree = _parsed(expression)
    if tree is None:
        return frozenset()
    return frozenset(getattr(s, "license_symbol", s).key for s in tree.get_symbols())


@lru_cache(maxsize=4096)
def tier(expression: str | None) -> Tier:
    """The tier of an expression: OR is its best branch, AND its worst; what is not known is "unknown"."""
    tree = _parsed(expression) if expression else None
    return "unknown" if tree is None else _tier_of(tree)


def _tier_of(tree: Any) -> Tier:
    from license_expression import LicenseWithExceptionSymbol

    children = getattr(tree, "args", ())
    if children:
        tiers = [_tier_of(child) for child in children]
        choose = min if tree.__class__.__name__ == "OR" else max
        return choose(tiers, key=_RANK.__getitem__)
    if isinstance(tree, LicenseWithExceptionSymbol):
        base = _tier_of(tree.license_symbol)
        linking = _LINKING_EXCEPTIONS.fullmatch(tree.exception_symbol.key)
        return "weak-copyleft" if base == "copyleft" and linking else base
    key = str(tree.key)
    if _PERMISSIVE.fullmatch(key):
        return "permissive"
    if _WEAK.fullmatch(key):
        return "weak-copyleft"
    return "copyleft" if _COPYLEFT.fullmatch(key) else "unknown"


def worse(first: str | None, second: str | None) -> bool:
    """Whether `first` lies in a stricter tier than `second`."""
    return _RANK[tier(first)] > _RANK[tier(second)]


def _conjuncts(expression: str) -> list[str]:
    tree = _parsed(expression)
    if tree is None or tree.__class__.__name__ != "AND":
        return [expression]
    return [str(part.render()) for part in tree.args]


def both(expressions: Iterable[str]) -> str | None:
    """All of these bind at once: the expressions joined with AND, duplicates left out; None for none."""
    kept = list(dict.fromkeys(part for expression in expressions for part in _conjuncts(expression)))
    if len(kept) < 2:
        return kept[0] if kept else None
    return normalise(" AND ".join(f"({expression})" for expression in kept))


def _family(key: str) -> str:
    """A licence without what a text or a loose name cannot tell: only or later, which BSD."""
    key = key.removesuffix("-only").removesuffix("-or-later")
    if key == "LicenseRef-BSD" or re.fullmatch(r"BSD-[234]-Clause", key):
        return "BSD"
    return key


def _same_family(first: str, second: str) -> bool:
    one, other = _family(first), _family(second)
    loose = next((k for k in (one, other) if re.fullmatch(r"LicenseRef-(A|L)?GPL-unversioned", k)), None)
    if loose is not None:
        name = loose.removeprefix("LicenseRef-").removesuffix("-unversioned")
        return all(k == loose or k.startswith(name + "-") for k in (one, other))
    both_bsd = one == other == "BSD"
    return first == second or (one == other and not both_bsd) or (both_bsd and "LicenseRef-BSD" in (first, second))


def join(text_evidence: str | None, declared: str | None) -> str | None:
    """One expression from a licence text and a declared licence that stand side by side.

    Where they tell the same, the more exact wording wins: a declared choice ("MIT OR Apache-2.0") explains
    two texts, a text tells which BSD is meant. Where they do not, both bind.
    """
    if text_evidence is None or declared is None:
        return text_evidence or declared
    texts, names = leaves(text_evidence), leaves(declared)
    if all(any(_same_family(t, n) for n in names) for t in texts):
        loose = any(name.startswith("LicenseRef-") for name in names)
        covered = all(any(_same_family(t, n) for t in texts) for n in names)
        if not loose:
            return declared
        if covered:
            return text_evidence
    return both([text_evidence, declared])


_NAMES = {
    "MIT": "mit|expat|mit expat|mit x11|mit style|osi approved mit",
    "Apache-2.0": "apache|apache2|apache 2|apache 2 0|apache v2|apache v2 0|apache software|"
    "apache software 2 0|asl 2|asl 2 0|apache version 2 0|apache version 2|al2",
    "LicenseRef-BSD": "bsd|bsd style|bsd like|bsd derived",
    "BSD-3-Clause": "bsd 3|bsd3|bsd 3 clause|3 clause bsd|new bsd|modified bsd|revised bsd|bsd 3 clauses",
    "BSD-2-Clause": "bsd 2|bsd2|bsd 2 clause|2 clause bsd|simplified bsd|freebsd",
    "0BSD": "zero clause bsd|bsd zero clause",
    "ISC": "isc|iscl|isc iscl",
    "MPL-2.0": "mpl2|mpl 2|mpl 2 0|mpl v2|mpl v2 0|mozilla public 2 0|mozilla public 2 0 mpl 2 0",
    "PSF-2.0": "psf|psfl|python software foundation|psf 2|psf 2 0",
    "Unlicense": "unlicense|public domain unlicense|unlicense unlicense",
    "CC0-1.0": "cc0|cc0 1 0|cc0 1 0 universal|cc0 1 0 universal cc0 1 0 public domain dedication",
    "LicenseRef-Public-Domain": "public domain",
    "Zlib": "zlib|zlib libpng",
    "BSL-1.0": "boost|boost software|boost software 1 0|boost software 1 0 bsl 1 0|bsl 1 0",
    "ZPL-2.1": "zpl 2 1|zope public|zope public 2 1",
    "EPL-2.0": "epl 2 0|eclipse public 2 0|eclipse public 2 0 epl 2 0",
    "HPND": "historical permission notice and disclaimer hpnd|hpnd",
    "WTFPL": "wtfpl|do what the fuck you want to public",
    "NCSA": "university of illinois ncsa open source|ncsa",
}


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    return {alias: identifier for identifier, names in _NAMES.items() for alias in names.split("|")}


_GNU_WORD = re.compile(
    r"gnu|affero|lesser|library|general|public|version|or|any|later|newer|plus|only|[al]?gpl(v?[23])?|v?[0-3]"
)


@lru_cache(maxsize=4096)
def from_name(text: str) -> str | None:
    """The SPDX expression behind a licence as people write it ("BSD License", "GPLv3+", "MIT/Apache-2.0").

    None when the name is not known. A name that leaves the version open gives a LicenseRef of its family.
    """
    text = " ".join(text.split())
    if not text or len(text) > 300:
        return None
    exact = normalise(text)
    if exact is not None:
        return exact
    words = re.sub(r"[^a-z0-9+]+", " ", text.lower()).replace("+", " plus ")
    words = re.sub(r"\b(the|licen[cs]ed?|under|terms|of)\b", " ", words)
    words = " ".join(words.split())
    found = _aliases().get(words) or _gnu(words)
    return found or _several(text)


def _gnu(words: str) -> str | None:
    """The identifier behind a GNU licence's name, already cut down to lower-case words."""
    if not re.search(r"gpl|general public", words) or not all(map(_GNU_WORD.fullmatch, words.split())):
        return None
    lesser = re.search(r"\b(lesser|library|lgpl)", words) is not None
    if lesser and re.search(r"\bgpl", words):
        return None  # two licences in one name
    name = "AGPL" if re.search(r"\b(affero|agpl)", words) else "LGPL" if lesser else "GPL"
    version = re.search(r"(?<!\d )\b(?:[al]?gpl)?v?([23])\b(?: ([01])\b)?", words)
    if version is None:
        return f"LicenseRef-{name}-unversioned"  # LicenseRef-GPL itself is read as GPL-1.0-or-later
    later = "or-later" if re.search(r"\b(later|newer|plus)\b", words) else "only"
    minor = version[2] or ("1" if name == "LGPL" and version[1] == "2" else "0")
    return normalise(f"{name}-{version[1]}.{minor}-{later}")


def _several(text: str) -> str | None:
    for pattern, operator in ((r"\s+or\s+|\s*/\s*|\s*\|\s*", " OR "), (r"\s+and\s+|\s*[,;&]\s*", " AND ")):
        parts = [part for part in re.split(pattern, text, flags=re.I) if part]
        if len(parts) > 1:
            names = [from_name(part) for part in parts]
            known = [name for name in names if name]
            return normalise(operator.join(f"({name})" for name in known)) if len(known) == len(parts) else None
    return None
