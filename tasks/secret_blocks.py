"""Secrets that are in Prefect: a Secret block is read by its name."""

from __future__ import annotations

from typing import Any

from prefect.blocks.system import Secret

from lobstertrap.errors import SecretMissing


def read_block(name: str) -> str:
    """Return the value of the Secret block `name`; no error shows it."""
    try:
        block: Any = Secret.load(name, _sync=True)  # type: ignore[call-arg]
    except ValueError:  # of all that it can mean: there is no block of this name
        raise SecretMissing(f"Prefect has no Secret block '{name}'") from None
    except Exception as error:
        kind = type(error).__name__
        raise SecretMissing(f"Prefect cannot be asked for it ({kind})") from None
    value = block.get()
    if not isinstance(value, str):
        raise SecretMissing(f"Prefect's Secret block '{name}' holds no text")
    return value
