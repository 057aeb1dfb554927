"""Errors a user can act on: what was asked, what was found, what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


class EquipoiseError(Exception):
    """Base of every error that ends in one sentence instead of a traceback."""

    exit_status = 1


class UsageError(EquipoiseError):
    """The call or the configuration is wrong; nothing was started."""

    exit_status = 2


class CellError(EquipoiseError):
    """One training run failed; the others are unaffected."""


class DataError(EquipoiseError):
    """A dataset's files are missing, corrupt or do not match their manifest."""


class SchemaError(EquipoiseError):
    """A file was written by a newer version than this one can read."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for an unregistered name, with the nearest name and the whole list."""
    names = sorted(known)
    nearest = get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


def check_choice(kind: str, value: str, choices: Any) -> None:
    """Raise UsageError unless a value is one of a `Literal`'s."""
    if value not in get_args(choices):
        raise unknown_name(kind, value, get_args(choices))


def disk_full(error: OSError) -> bool:
    """Return whether no space, or none of the user's quota, was left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
