"""Failures that the command line tells apart by exit code; anything else is a crash (1, with a traceback)."""

from __future__ import annotations

__all__ = ["CheckpointError", "Diverged", "Interrupted", "UserError"]


class UserError(Exception):
    """Something that the user can put right: a scenario, an argument, a name. Exit 2, no traceback."""


class Diverged(Exception):
    """Training met a non-finite value or a bound that cannot be met; says the likely cause. Exit 3."""


class Interrupted(Exception):
    """The user stopped the run, and it was saved. The message says how to resume it; exit 130."""


class CheckpointError(UserError):
    """A checkpoint cannot be written, read or used as asked; says which file or entry, and why."""
