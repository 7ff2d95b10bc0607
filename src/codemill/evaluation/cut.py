"""Where an infilled answer ends: the cut that an editor makes before it shows a completion.

A model that was not trained to stop writes on past the gap. Scored as it is, such an answer only says that the model does
not stop; the same cut for every model says whether the code it wrote for the gap is right. How many answers ended by
themselves is reported beside it.
"""

from __future__ import annotations

from codemill.core.contracts import Task

# A line of the suffix shorter than this (a bracket, `else:`) may well occur in an answer of its own right.
_TELLING = 8


def cut_to_gap(text: str, prefix: str, suffix: str) -> str:
    """The part of an infilled text that belongs into the gap between `prefix` and `suffix`.

    It ends before the first line indented less than the answer's first one, and before a line that repeats the first
    telling line of the suffix. A gap that begins inside a line takes its depth from that line.
    """
    lines = text.splitlines(keepends=True)
    opening = prefix.rpartition("\n")[2]
    depth = next((indent(opening + line if i == 0 else line) for i, line in enumerate(lines) if line.strip()), 0)
    ahead = next((line for line in suffix.splitlines()[1:] if line.strip()), "")
    for i, line in enumerate(lines):
        if i == 0 or not line.strip():
            continue
        if indent(line) < depth or (line.rstrip() == ahead.rstrip() and len(ahead.strip()) >= _TELLING):
            return "".join(lines[:i]).rstrip("\r\n \t") + _final_newline(suffix)
    return text


def block_stops(prefix: str) -> tuple[str, ...]:
    """Strings that no answer inside a function or class contains: generation may stop at them.

    They only save time; what they cut, `cut_to_gap` would cut as well.
    """
    opening = next((line for line in reversed(prefix.splitlines()) if line.strip()), "")
    inside = indent(opening) > 0 or opening.rstrip().endswith(":")
    return ("\ndef ", "\nclass ", "\n@", "\nif __name__") if inside else ()


def is_line_gap(task: Task) -> bool:
    """Whether the task's gap is made of whole lines of Python, to which the cut applies."""
    return task.suffix is not None and task.metadata.get("language") == "python"


def indent(line: str) -> int:
    """Columns of white space a line begins with, tabs to the next multiple of 8."""
    expanded = line.expandtabs(8)
    return len(expanded) - len(expanded.lstrip(" "))


def _final_newline(suffix: str) -> str:
    return "" if suffix.startswith(("\n", "\r\n")) else "\n"
