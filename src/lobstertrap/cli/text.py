"""How values look to a person: sizes, ages, and names that cannot play tricks."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def printable(text: object) -> str:
    """Return one line in which control, bidi and broken characters are escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def printable_lines(text: str) -> str:
    """Return `text` with its line breaks kept and everything else `printable`."""
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def size(count: float) -> str:
    """Return bytes in powers of 1000: `12.3 MB`."""
    unit = 0
    while count >= 999.95 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - shows as 1.0
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Return seconds as the two largest units: `3 h 20 min`."""
    if seconds < 10:  # noqa: PLR2004 - below this a tenth is worth showing
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    for length, name, smaller, small_name in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= length:
            large, rest = divmod(whole, length)
            small = f" {rest // smaller} {small_name}" if rest // smaller else ""
            return f"{large} {name}{small}"
    return f"{whole} s"


def age(then: float, now: float) -> str:
    """Return how long ago `then` was; a clock that runs ahead shows as `just now`."""
    return f"{duration(now - then)} ago" if now - then >= 1 else "just now"
