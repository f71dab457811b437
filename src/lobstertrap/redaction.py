"""Values that must not be seen: `SecretValue`, and the filter that guards the logs."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import NoReturn

REDACTED = "**********"


class SecretValue:
    """A resolved secret: no repr, no equality, no pickle; read it with `reveal`.

    `mark` tells two values apart without showing either: a keyed digest, or "".
    """

    __slots__ = ("_value", "mark")

    def __init__(self, value: str, *, mark: str = "") -> None:
        self._value = value
        self.mark = mark

    def reveal(self) -> str:
        """Return the plain value; call it only where the value is handed over."""
        return self._value

    def __repr__(self) -> str:
        return f"SecretValue({REDACTED})"

    __str__ = __repr__

    def __eq__(self, other: object) -> NoReturn:
        msg = "secret values are not compared"
        raise TypeError(msg)

    def __hash__(self) -> NoReturn:
        msg = "secret values are not hashed"
        raise TypeError(msg)

    def __reduce__(self) -> NoReturn:
        msg = "secret values are not pickled"
        raise TypeError(msg)


class RedactingFilter(logging.Filter):
    """Replaces every known secret value in a log record before a handler sees it."""

    def __init__(self) -> None:
        super().__init__()
        self._values: set[str] = set()

    def add(self, value: SecretValue) -> None:
        """Remember `value`; ones shorter than 4 characters would garble the log."""
        if len(value.reveal()) >= 4:  # noqa: PLR2004
            self._values.add(value.reveal())

    def watch_loggers(self, *names: str) -> None:
        """Guard the loggers called `names`, and all that reaches their handlers.

        A logger's own filter sees what is logged by that name; what its children log
        goes to its handlers straight away.
        """
        for logger in map(logging.getLogger, names):
            for guarded in (logger, *logger.handlers):
                guarded.addFilter(self)

    def redact(self, text: str) -> str:
        """Return `text` with every known value replaced."""
        # The longest first: one value may be the beginning of another.
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, REDACTED)
        return text

    def clean(self, error: BaseException | None) -> None:
        """Take every known value out of an error, and of the errors behind it.

        For those that somebody else keeps: Prefect stores the text of what ends a run.
        """
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            error.args = tuple(self._cleaned(part) for part in error.args)
            for name, value in vars(error).items():
                if isinstance(value, (str, bytes)):
                    with suppress(AttributeError):
                        setattr(error, name, self._cleaned(value))
            error = error.__cause__ or error.__context__

    def _cleaned(self, value: object) -> object:
        if isinstance(value, bytes):
            text = value.decode("utf-8", "surrogateescape")
            return self.redact(text).encode("utf-8", "surrogateescape")
        return self.redact(value) if isinstance(value, str) else value

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record in place; never drop it."""
        if self._values:
            record.msg = self.redact(record.getMessage())
            record.args = None
            if record.exc_info:
                record.exc_text = self.redact(
                    logging.Formatter().formatException(record.exc_info)
                )
        return True


redactor = RedactingFilter()
"""The process's own filter: every resolved secret is added to it."""
