"""The policy: from what was measured on a file to keep, drop or quarantine, with a countable reason.

Dropped is what is no good to learn from. Quarantined is what may be good but must not be used as it is: a
licence that is not allowed, or text that shows other code than it holds.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from codemill.corpus import measures
from codemill.corpus.languages import detect, kind_of
from codemill.corpus.license_files import Finding
from codemill.corpus.licenses import Tier, tier
from codemill.corpus.measures import RawSignals, TextSignals

Outcome = Literal["keep", "drop", "quarantine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Thresholds of the corpus. Defaults: the filters published for The Stack v2 and DeepSeek-Coder."""

    max_file_bytes: int = 1 << 20
    max_lines: int = 100_000
    max_line: int = 1000  # characters; programming and markup's style sheets
    max_line_loose: int = 100_000  # characters; data, markup and prose, which may be one line a paragraph
    max_mean_line: float = 100.0  # characters; programs of at least `mean_line_from` lines
    mean_line_from: int = 5
    min_alphabetic_share: float = 0.25  # of all characters
    max_control_share: float = 0.01
    max_blob: int = 1024  # characters of one run of encoded bytes
    max_blob_share: float = 0.5
    max_data_characters: int = 5000  # JSON, YAML, XML, CSV and the like; known configuration files are exempt
    tiers: tuple[Tier, ...] = ("permissive",)  # licence tiers that are kept, the others are quarantined
    keep_vendored: bool = False
    keep_generated: bool = False
    keep_unknown_languages: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a file. `detail` is the evidence behind `reason`; both are empty for what is kept."""

    outcome: Outcome
    reason: str = ""
    detail: str = ""


KEEP = Decision("keep")


@dataclass(frozen=True, slots=True)
class Judged:
    """One file after the policy: its decision beside everything that was found on the way.

    `text` is None for what was not decoded, `signals` for what was dropped before measuring.
    """

    decision: Decision
    language: str = "unknown"
    license: Finding = field(default_factory=lambda: Finding(None, ""))
    labels: tuple[str, ...] = ()
    signals: TextSignals | None = None
    text: str | None = None


def judge_bytes(path: str, raw: RawSignals, policy: Policy) -> Decision:
    """The first look, before a file is read into memory: what its bytes alone rule out."""
    encoding = measures.other_encoding(raw.head)
    binary = measures.binary_format(raw.head)
    if raw.blank or raw.head == BOM_UTF8:
        return Decision("drop", "empty")
    if raw.size > policy.max_file_bytes:
        return Decision("drop", "size", f"{raw.size} bytes, allowed {policy.max_file_bytes}")
    if encoding:
        return Decision("drop", "encoding", encoding)
    if raw.has_nul or binary:
        return Decision("drop", "binary", binary or "NUL byte")
    if raw.lines > policy.max_lines:
        return Decision("drop", "size", f"{raw.lines} lines, allowed {policy.max_lines}")
    longest = max(policy.max_line, policy.max_line_loose)
    if raw.longest_line > 4 * longest:  # a character has at most four bytes
        minified = measures.minified_name(path)
        return Decision("drop", "minified" if minified else "long-line", f"{raw.longest_line} bytes in one line")
    return KEEP


def judge_text(path: str, data: bytes, license_of: Callable[[str, str], Finding], policy: Policy) -> Judged:
    """Decode, measure and judge a file that passed `judge_bytes`. `license_of(path, text)` gives its licence."""
    text = measures.decode(data)
    if text is None:
        return Judged(Decision("drop", "encoding", "not UTF-8"), labels=measures.place_labels(path))
    language = detect(path, text)
    signals = measures.measure_text(text)
    finding = license_of(path, text)
    labels = list(measures.place_labels(path))
    decision = decide(path, text, language, signals, finding, tuple(labels), policy)
    if language == "python" and decision.outcome != "drop":
        problem = measures.python_problem(text)
        labels += [problem] if problem else []
    return Judged(decision, language, finding, tuple(labels), signals, text)


def decide(
    path: str,
    text: str,
    language: str,
    signals: TextSignals,
    license: Finding,
    labels: tuple[str, ...],
    policy: Policy,
) -> Decision:
    """The policy's verdict on one decoded file. The first rule that applies gives the reason."""
    return (
        _origin(path, text, policy)
        or _shape(path, language, signals, policy)
        or _content(text, signals, policy)
        or _kind(language, text, labels, policy)
        or _caution(text, license, policy)
        or KEEP
    )


def _origin(path: str, text: str, policy: Policy) -> Decision | None:
    """Files that nobody of the project wrote by hand."""
    if text.startswith("version https://git-lfs.github.com/spec/"):
        return Decision("drop", "lfs-pointer")
    folder = None if policy.keep_vendored else measures.vendored_folder(path)
    if folder:
        return Decision("drop", "vendored", f"folder {folder}")
    tool = None if policy.keep_generated else measures.generated_by(path, text)
    return Decision("drop", "generated", tool) if tool else None


def _shape(path: str, language: str, signals: TextSignals, policy: Policy) -> Decision | None:
    """Line lengths: minified, embedded data, or no source at all."""
    if measures.minified_name(path):
        return Decision("drop", "minified", "file name")
    program = kind_of(language) == "programming" or language == "css"
    squeezed = language in ("javascript", "typescript", "css")
    limit = policy.max_line if program else policy.max_line_loose
    if signals.longest_line > limit:
        reason = "minified" if squeezed and signals.mean_line > policy.max_mean_line else "long-line"
        return Decision("drop", reason, f"{signals.longest_line} characters in one line, allowed {limit}")
    long_lines = program and signals.lines >= policy.mean_line_from
    if long_lines and signals.mean_line > policy.max_mean_line:
        detail = f"{signals.mean_line:.0f} characters a line, allowed {policy.max_mean_line:g}"
        return Decision("drop", "minified" if squeezed else "mean-line", detail)
    return None


def _content(text: str, signals: TextSignals, policy: Policy) -> Decision | None:
    """What the characters are."""
    if measures.merge_conflict(text):
        return Decision("drop", "merge-conflict")
    if signals.control_share > policy.max_control_share:
        return Decision("drop", "binary", f"{signals.control_share:.0%} control characters")
    if signals.longest_blob > policy.max_blob or signals.blob_share > policy.max_blob_share:
        return Decision("drop", "encoded", f"{signals.longest_blob} characters in one run")
    if signals.alphabetic_share < policy.min_alphabetic_share:
        return Decision("drop", "alphabetic", f"{signals.alphabetic_share:.2f} of the characters are letters")
    return None


def _kind(language: str, text: str, labels: tuple[str, ...], policy: Policy) -> Decision | None:
    """What the file is."""
    kind = kind_of(language)
    if kind == "unknown" and not policy.keep_unknown_languages:
        return Decision("drop", "language", "not recognised")
    if kind == "data" and "config" not in labels and len(text) > policy.max_data_characters:
        return Decision("drop", "data", f"{len(text)} characters, allowed {policy.max_data_characters}")
    return None


def _caution(text: str, license: Finding, policy: Policy) -> Decision | None:
    """What must not be learnt from as it is."""
    control = measures.bidi_control(text)
    if control:
        return Decision("quarantine", "bidi", control)
    found = tier(license.expression)
    if found not in policy.tiers:
        return Decision("quarantine", "license", f"{license.expression or 'unknown'} ({license.evidence})")
    return None
