"""Which licence each file of a repository is under, from what lies in the repository.

Evidence, most specific first: an SPDX tag in the file, a licence notice at its top, the licence files and
metadata of the nearest folder up the tree. A file's own evidence may narrow what the folder grants, never
widen it. Licence texts are recognised by short distinctive phrases. A text that holds much more than the
licence, or a rider that takes rights back, is not recognised: unknown is never clean.
"""

from __future__ import annotations

import configparser
import email.parser
import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from codemill.corpus.licenses import both, from_name, join, normalise, worse

READ_BYTES = 1 << 18  # of a licence or metadata file; none that we recognise is longer
HEADER_CHARACTERS = 6000
EXTRA_WORDS = 150  # copyright lines and the like around a licence text


@dataclass(frozen=True, slots=True)
class Finding:
    """A licence and what it rests on. `expression` is None when evidence is missing or not understood."""

    expression: str | None
    evidence: str


@dataclass(frozen=True, slots=True)
class _Text:
    """Phrases of a licence, lower case without punctuation, that together occur in no other; its length."""

    license: str
    words: int
    phrases: tuple[str, ...]
    absent: tuple[str, ...] = ()


_MIT_GRANT = "permission is hereby granted free of charge to any person obtaining a copy"
_MIT_NOTICE = "above copyright notice and this permission notice"
_BSD_GRANT = "redistribution and use in source and binary forms with or without modification"
_BSD_BINARY = "redistributions in binary form must reproduce the"
_BSD_NAME = "endorse or promote products derived from this software"
_BSD_ADS = "all advertising materials mentioning features"
_ISC_GRANT = "for any purpose with or without fee is hereby granted"
_NO_NAMES = "except as contained in this notice the name"

_TEXTS = (
    _Text("MIT", 165, (_MIT_GRANT, _MIT_NOTICE), (_NO_NAMES,)),
    _Text("X11", 210, (_MIT_GRANT, _MIT_NOTICE, _NO_NAMES)),
    _Text("MIT-0", 140, (_MIT_GRANT, "software is provided as is"), (_MIT_NOTICE,)),
    _Text("BSD-4-Clause", 260, (_BSD_GRANT, _BSD_BINARY, _BSD_ADS)),
    _Text("BSD-3-Clause", 220, (_BSD_GRANT, _BSD_BINARY, _BSD_NAME), (_BSD_ADS,)),
    _Text("BSD-2-Clause", 190, (_BSD_GRANT, _BSD_BINARY), (_BSD_NAME, _BSD_ADS)),
    _Text("ISC", 120, (_ISC_GRANT, "permission notice appear in all copies")),
    _Text("0BSD", 100, (_ISC_GRANT, "software is provided as is"), ("permission notice appear in all copies",)),
    _Text("HPND", 190, ("and its documentation for any purpose and without fee is hereby granted",)),
    _Text(
        "Zlib",
        145,
        ("without any express or implied warranty", "altered source versions must be plainly marked"),
    ),
    _Text("Unlicense", 215, ("this is free and unencumbered software released into the public domain",)),
    _Text("BSL-1.0", 245, ("boost software license version 1 0", "machine executable object")),
    _Text("Apache-2.0", 1650, ("apache license version 2 0", "grant of patent license", "derivative works")),
    _Text("MPL-2.0", 2500, ("mozilla public license version 2 0", "incompatible with secondary licenses")),
    _Text("EPL-2.0", 2350, ("eclipse public license v 2 0", "each contributor hereby grants recipient")),
    _Text("CC0-1.0", 1080, ("cc0 1 0 universal", "affirmer")),
    _Text("PSF-2.0", 420, ("psf hereby grants licensee",), ("beopen",)),
    _Text("Python-2.0", 2400, ("psf hereby grants licensee", "beopen python open source license agreement")),
    _Text("GPL-2.0-only", 3050, ("gnu general public license version 2 june 1991", "no warranty")),
    _Text("GPL-3.0-only", 5750, ("gnu general public license version 3 29 june 2007", "anti circumvention law")),
    _Text("LGPL-2.0-only", 4300, ("gnu library general public license version 2 june 1991",)),
    _Text("LGPL-2.1-only", 4500, ("gnu lesser general public license version 2 1 february 1999", "no warranty")),
    _Text("LGPL-3.0-only", 1250, ("gnu lesser general public license version 3 29 june 2007", "combined work")),
    _Text(
        "AGPL-3.0-only",
        5700,
        ("gnu affero general public license version 3 19 november 2007", "remote network"),
    ),
)
_RIDER = re.compile(
    r"\b(?:commons clause|non ?commercial|not for evil|good not evil|ethical|military"
    r"|(?:shall|may|must) not be (?:used|sold)(?! to endorse| in advertising| or otherwise| in the name))\b"
)
_GNU_NOTICE = re.compile(
    r"terms of (?:version (?P<v1>[\d ]+?) of )?the gnu (?P<kind>affero |lesser |library )?"
    r"general public licen[cs]e(?: as published by the free software foundation)?"
    r"(?:(?: either)? version (?P<v2>\d(?: \d)?)(?: of the license)?"
    r"(?P<later> or at your option any later version)?)?"
)
_APACHE_NOTICE = "licensed under the apache license version 2 0"
_MPL_NOTICE = re.compile(r"subject to the terms of the mozilla public license v(?:ersion)? 2 0")


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _texts_in(words: str) -> list[_Text]:
    return [
        text for text in _TEXTS if all(p in words for p in text.phrases) and not any(p in words for p in text.absent)
    ]


def _notices_in(words: str) -> list[str]:
    found = []
    for match in _GNU_NOTICE.finditer(words):
        kinds = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL", None: "GPL"}
        name, version = kinds[match["kind"]], (match["v1"] or match["v2"] or "").split()
        if version:
            number = ".".join([*version, "0"][:2])
            found.append(normalise(f"{name}-{number}-{'or-later' if match['later'] else 'only'}") or name)
        else:
            found.append(f"LicenseRef-{name}-unversioned")
    if _APACHE_NOTICE in words:
        found.append("Apache-2.0")
    if _MPL_NOTICE.search(words):
        found.append("MPL-2.0")
    return found


def recognise(text: str) -> str | None:
    """The licence that a licence file's text is, joined with AND when it holds several; None when unsure."""
    words = _words(text)
    found = _texts_in(words)
    if not found:
        notices = both(_notices_in(words))
        return notices if words.count(" ") < 100 + 2 * EXTRA_WORDS else None
    expected = sum(licence.words for licence in found)
    if words.count(" ") > 1.1 * expected + EXTRA_WORDS:
        return None
    if expected < 1000 and _RIDER.search(words):
        return None
    return both(licence.license for licence in found)


_TAG = re.compile(r"^.{0,12}?SPDX-License-Identifier:[ \t]*(.{1,300})$", re.MULTILINE)


def file_finding(text: str) -> Finding | None:
    """What a source file's own header says about its licence; None when it says nothing."""
    header = text[:HEADER_CHARACTERS]
    tags = [re.sub(r"\s*(?:\*/|-->|#\}|%>|\*\)|\"\"\"|''').*$", "", tag).strip() for tag in _TAG.findall(header)]
    if tags:
        known = [expression for expression in map(normalise, tags) if expression]
        if len(known) < len(tags):
            return Finding(None, f"SPDX tag not understood: {tags[0][:60]}")
        return Finding(both(known), "SPDX tag")
    words = _words(header)
    found = [licence.license for licence in _texts_in(words)] or _notices_in(words)
    return Finding(both(found), "notice in the file") if found else None


_LICENSE_NAME = re.compile(
    r"^(?:(?:un)?licen[cs]es?|copying|copyright)(?:[._-].*)?$|^.*[._-]licen[cs]e(?:\.(?:txt|md|rst))?$", re.I
)
# Nothing but a heading and the name of the file to look in, as documentation folders have it.
_POINTER = re.compile(r"\s*(?:[^\n]{1,80}\n[=~*#-]+\s+)?(?:\.\. (?:literal)?include:: ?)?(?:\.\./)+\S{1,80}\s*")
_NAMED = re.compile(r"\bunder (?:the )?([\w .+-]{2,40}?) licen[cs]e\b", re.I)
_CODE_SUFFIXES = (
    ".py",
    ".js",
    ".ts",
    ".go",
    ".c",
    ".h",
    ".java",
    ".rs",
    ".json",
    ".html",
    ".toml",
    ".yml",
    ".yaml",
)
_METADATA = ("pyproject.toml", "PKG-INFO", "METADATA", "setup.cfg", "package.json", "Cargo.toml")


def is_evidence(path: str) -> bool:
    """Whether a file is read for the licences of its folder."""
    name = PurePosixPath(path).name
    return name in _METADATA or is_license_file(path)


def is_license_file(path: str) -> bool:
    name = PurePosixPath(path).name
    return _LICENSE_NAME.match(name) is not None and not name.lower().endswith(_CODE_SUFFIXES)


class RepositoryLicenses:
    """The licences of one repository with these paths; `read` gives the text of those for which `is_evidence` holds."""

    def __init__(self, paths: Iterable[str], read: Callable[[str], str]) -> None:
        self._folders: dict[str, Finding] = {}
        by_folder: dict[str, list[str]] = {}
        for path in sorted(filter(is_evidence, paths)):
            by_folder.setdefault(str(PurePosixPath(path).parent), []).append(path)
        for folder in sorted(by_folder, key=lambda name: (name != ".", name.count("/"), name)):
            finding = self._folder_finding(folder, {path: read(path) for path in by_folder[folder]})
            if finding is not None:
                self._folders[folder] = finding

    def _folder_finding(self, folder: str, files: Mapping[str, str]) -> Finding | None:
        above = self.folder(str(PurePosixPath(folder).parent)) if folder != "." else Finding(None, "")
        texts = {p: t for p, t in files.items() if is_license_file(p) and not _adds_nothing(t, above)}
        declared = {
            p: e for p, t in files.items() if not is_license_file(p) and (e := metadata_license(p, t)) is not None
        }
        metadata = both(declared.values())
        if not texts:
            if metadata is None:
                return None
            finding = Finding(metadata, ", ".join(declared))
            return _narrowed(finding, above) if above.evidence else finding
        recognised = {path: recognise(text) for path, text in texts.items()}
        known = {path: expression for path, expression in recognised.items() if expression}
        strange = [p for p in texts if p not in known and not (known and len(texts[p].split()) < EXTRA_WORDS)]
        if strange:
            return Finding(None, f"{strange[0]} not recognised")
        expression = join(both(_without_carriers(known.values())), metadata)
        return Finding(expression, ", ".join([*known, *declared]))

    def folder(self, folder: str) -> Finding:
        """The licence that holds in a folder where its files say nothing themselves."""
        place = PurePosixPath(folder)
        for candidate in (place, *place.parents):
            if str(candidate) in self._folders:
                return self._folders[str(candidate)]
        return Finding(None, "")

    def of(self, path: str, text: str) -> Finding:
        """The licence of one file."""
        above = self.folder(str(PurePosixPath(path).parent))
        own = None if is_license_file(path) else file_finding(text)
        if own is None:
            return above if above.evidence else Finding(None, "no licence found")
        return _narrowed(own, above) if above.evidence else own


def _adds_nothing(text: str, above: Finding) -> bool:
    """Whether a licence file below the top only points to, or briefly names, the licence that holds above it."""
    if above.expression is None or len(text.split()) > EXTRA_WORDS:
        return False
    names = [from_name(name) for name in _NAMED.findall(text)]
    same = [name is not None and join(above.expression, name) == above.expression for name in names]
    return _POINTER.fullmatch(text) is not None or (bool(names) and all(same))


def _narrowed(own: Finding, above: Finding) -> Finding:
    """A file's own licence below that of its folder: taken when it is as strict, else both bind."""
    evidence = f"{own.evidence}; {above.evidence}"
    if own.expression is None or above.expression is None:
        return Finding(None, evidence)
    if worse(above.expression, own.expression):
        return Finding(both([own.expression, above.expression]), evidence)
    return Finding(own.expression, evidence)


def _without_carriers(licences: Iterable[str]) -> Iterator[str]:
    """LGPL-3.0 is written as additions to the GPL, so both texts lie there and the first is the licence."""
    found = list(licences)
    for licence in found:
        if not (licence == "GPL-3.0-only" and "LGPL-3.0-only" in found):
            yield licence


def metadata_license(path: str, text: str) -> str | None:
    """The licence that a metadata file declares; None when it declares none, or none we understand."""
    readers: dict[str, Callable[[str], Iterable[str | None]]] = {
        "pyproject.toml": _from_pyproject,
        "PKG-INFO": _from_core_metadata,
        "METADATA": _from_core_metadata,
        "setup.cfg": _from_setup_cfg,
        "package.json": _from_package_json,
        "Cargo.toml": _from_cargo,
    }
    try:
        declared = [expression for expression in readers[PurePosixPath(path).name](text) if expression]
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, configparser.Error):
        return None  # a broken metadata file is no evidence
    return _agreed(declared)


def _agreed(declared: list[str]) -> str | None:
    """Statements of one file as one expression: a loose name beside an exact one adds nothing."""
    result: str | None = None
    for expression in sorted(declared, key=lambda e: "LicenseRef-" in e):
        result = join(expression, result) if result and "LicenseRef-" not in expression else join(result, expression)
    return result


def _statement(text: str) -> str | None:
    """A declared licence: a name, an expression, or the whole text put in the field."""
    return from_name(text) if "\n" not in text.strip() else recognise(text)


def _classifiers(lines: Iterable[str]) -> Iterator[str | None]:
    for line in lines:
        if line.startswith("License :: "):
            name = line.rsplit(" :: ", 1)[1].strip()
            if name not in ("OSI Approved", "Other/Proprietary License", "Free For Educational Use"):
                yield from_name(re.sub(r"\s*\([A-Za-z0-9 .+-]*\)$", "", name)) or from_name(name)


def _from_pyproject(text: str) -> Iterator[str | None]:
    data = tomllib.loads(text)
    project: dict[str, Any] = data.get("project") or {}
    licence = project.get("license") or (data.get("tool") or {}).get("poetry", {}).get("license")
    if isinstance(licence, dict):
        licence = licence.get("text")
    if isinstance(licence, str):
        yield _statement(licence)
    yield from _classifiers(map(str, project.get("classifiers") or ()))


def _from_core_metadata(text: str) -> Iterator[str | None]:
    headers = email.parser.HeaderParser().parsestr(text)
    exact = headers.get("License-Expression")
    if exact:
        yield normalise(str(exact))
        return
    licence = str(headers.get("License") or "")
    if licence and licence.upper() != "UNKNOWN":
        yield _statement(licence)
    yield from _classifiers(map(str, headers.get_all("Classifier") or ()))


def _from_setup_cfg(text: str) -> Iterator[str | None]:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(text)
    if parser.has_section("metadata"):
        section = parser["metadata"]
        if section.get("license"):
            yield _statement(section["license"])
        yield from _classifiers(line.strip() for line in section.get("classifiers", "").splitlines())


def _from_package_json(text: str) -> Iterator[str | None]:
    data = json.loads(text)
    stated = [data.get("license"), *(data.get("licenses") or ())]
    for licence in stated:
        name = licence.get("type") if isinstance(licence, dict) else licence
        if isinstance(name, str) and name not in ("UNLICENSED",) and not name.startswith("SEE LICENSE"):
            yield from_name(name)


def _from_cargo(text: str) -> Iterator[str | None]:
    licence = (tomllib.loads(text).get("package") or {}).get("license")
    if isinstance(licence, str):
        yield from_name(licence.replace("/", " OR "))
