"""A command line that makes no sense, as an error of ours: one line, and a hint."""

from __future__ import annotations

import typer

from lobstertrap.errors import InvalidInput

_TYPO = " Did you mean "
_PYDANTIC = "Value error, "

# Typer brought its own copy of Click in some version: these are wherever it has them.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What the command line's parser raises, and commands as `typer.BadParameter`."""


def is_bare(error: Exception) -> bool:
    """Say whether nothing was typed after a name that stands for several commands."""
    return type(error).__name__ == "NoArgsIsHelpError"


def show(error: Exception) -> int:
    """Print the help that such an error brings; returns the exit code."""
    error.show()  # type: ignore[attr-defined]
    return 2


def explained(error: Exception) -> InvalidInput:
    """Return what is wrong and, as the hint, what was meant or where help is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "lobstertrap"
    where = f"`{command} --help` shows what it takes"
    # Their own sentence, with what they know besides taken out of it.
    possible = getattr(error, "possibilities", None) or ()
    whole = getattr(error, "message" if possible else "format_message")
    text = " ".join((whole if possible else whole()).split())
    text = text.replace(_PYDANTIC, "")
    message, _, meant = text.partition(_TYPO)
    meant = meant.removesuffix("?") or " or ".join(f"'{one}'" for one in possible)
    message = message.rstrip(".")
    return InvalidInput(
        message[:1].lower() + message[1:],
        hint=f"did you mean {meant}? {where}" if meant else where,
    )
