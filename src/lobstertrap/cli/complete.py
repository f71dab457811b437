"""What the shell offers where a name is typed; nothing where no project is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lobstertrap.config import Config


def agents(incomplete: str) -> list[str]:
    """Return the agents whose names begin so."""
    config = _config()
    names = config.agent_names if config else ()
    return [name for name in names if name.startswith(incomplete)]


def targets(incomplete: str) -> list[str]:
    """Return the targets whose names begin so."""
    config = _config()
    names = config.target_names if config else ()
    return [name for name in names if name.startswith(incomplete)]


def _config() -> Config | None:
    from lobstertrap.config import load  # noqa: PLC0415 - not for --help
    from lobstertrap.errors import LobsterTrapError  # noqa: PLC0415

    with suppress(LobsterTrapError, OSError):
        return load(Path.cwd(), os.environ)
    return None
