"""Text from outside made safe to look at: nothing acts invisibly, nothing is endless.

Escaping for HTML is the template engine's work, spelling out what is unseen that of `core.text`; this is about length.
"""

from __future__ import annotations

import math
import re


def clip(text: str, characters: int) -> str:
    """At most so many characters, with a mark where something was cut."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def head(text: str, lines: int, characters: int = 240) -> str:
    """The first lines, none too wide; says how many were left out."""
    found = text.split("\n")
    kept = [clip(line, characters) for line in found[:lines]]
    rest = len(text.rstrip("\n").split("\n")) - len(kept)
    return "\n".join([*kept, f"… {counted(rest, 'more line')}"] if rest > 0 else kept)


def tail(text: str, lines: int, characters: int = 240) -> str:
    """The last lines, none too wide."""
    return "\n".join(clip(line, characters) for line in text.split("\n")[-lines:])


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, a real minus; what rounds to zero has none."""
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return signed(100 * share)


def percent(share: float | None) -> str:
    return "—" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def duration(seconds: float) -> str:
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def moment(stamp: str) -> str:
    """`2031-05-06T07:08:09Z` as people write it; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", stamp)
    return f"{found[1]} {found[2]} UTC" if found else stamp


def tight(sentence: str) -> str:
    """A sentence in which no line ends between a number and its unit, or inside an interval."""
    return re.sub(r"(?<=\d) (?=%|points|bits|to [+−\d])|(?<=\d to) (?=[+−\d])", "\u00a0", sentence)


def counted(count: int, noun: str) -> str:
    """`1 task`, `2 tasks`, `1 copy`, `2 copies`."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{count:,} {noun if count == 1 else plural}"
