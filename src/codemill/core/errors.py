"""Errors that a user can act on: each message names the file, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CodemillError(Exception):
    """A job could not be done, for a reason the message states. The command line prints it on one line."""

    exit_code = 2


class ConfigError(CodemillError):
    """A recipe, a flag or a setting is wrong. Raised before any work."""


class InputError(CodemillError):
    """A file or folder given by the user is missing, malformed or hostile."""


class IntegrityError(CodemillError):
    """Bytes are not what they should be: a hash, a tensor shape, a truncated file."""


class UnavailableError(CodemillError):
    """Something outside cannot be had: the network, disk space, a tool."""


class IsolationError(CodemillError):
    """Isolation was required that this machine cannot give. Raised before any run, never a verdict."""


class InvalidRunError(CodemillError):
    """The job ran but its result must not be used, for instance because too many answers were unscorable."""

    exit_code = 3


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for an unknown name: the closest valid one, or the list of all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(names)}"
