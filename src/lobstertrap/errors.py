"""The one tree of errors that Lobster Trap raises.

    LobsterTrapError            message, and a hint that says what to do next
    ├── Permanent               trying again changes nothing
    │   ├── InvalidInput        a spec, a setting or an argument is wrong
    │   ├── NotFound            the named thing does not exist
    │   ├── Conflict            a condition on a write did not hold
    │   ├── AccessDenied        credentials are wrong, expired or too weak
    │   ├── SecretMissing       a secret reference cannot be resolved
    │   ├── IntegrityError      stored or restored bytes are not what was promised
    │   ├── Unhealthy           the agent ran but never became ready
    │   ├── NoSpace             a disk or a quota is full
    │   └── Refused             it would be unsafe, so it was not done
    │       ├── Held            another operation, which is alive, holds the agent
    │       └── LeaseLost       somebody else holds the agent now
    └── Transient               the same call may succeed later
        ├── Unavailable         a store, a target or a server does not answer
        └── TimedOut            it answered, but not in time

Messages are lower case, name the thing and end without a full stop; the hint is one
sentence in the imperative.
"""

from __future__ import annotations

from typing import ClassVar


class LobsterTrapError(Exception):
    """The root: `message` says what is wrong, `hint` what to do next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the hint, so that it survives a process boundary."""
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(
    kind: type[LobsterTrapError], message: str, hint: str | None
) -> LobsterTrapError:
    return kind(message, hint=hint)


class Permanent(LobsterTrapError):
    """Trying the same again changes nothing."""


class Transient(LobsterTrapError):
    """The same call may succeed later."""


class InvalidInput(Permanent):
    """A spec, a setting or an argument is wrong; the message lists every mistake."""

    exit_code = 2


class NotFound(Permanent):
    """The named object, agent, target, volume or snapshot does not exist."""


class Conflict(Permanent):
    """A conditional write found something else than it expected."""


class AccessDenied(Permanent):
    """Credentials are wrong, expired or not allowed to do this."""


class SecretMissing(Permanent):
    """One or more secret references cannot be resolved; names only, never values."""


class IntegrityError(Permanent):
    """Stored or restored bytes are not what was promised."""


class Unhealthy(Permanent):
    """The agent was launched but did not become ready in time, or died."""


class NoSpace(Permanent):
    """A disk or a quota is full."""


class Refused(Permanent):
    """It would be unsafe (two running copies, no complete copy), so it was not done."""

    exit_code = 3


class Held(Refused):
    """Another operation, which is alive, holds the agent."""


class LeaseLost(Refused):
    """Another operation holds the agent now; this one must stop before any effect."""


class Unavailable(Transient):
    """A store, a target or a server does not answer, or answers with a server error."""


class TimedOut(Transient):
    """An answer did not come within the time allowed."""
