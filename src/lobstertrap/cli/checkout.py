"""The checkout that this program runs from: flows/ and prefect.yaml are in no wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lobstertrap.errors import NotFound


def find_checkout() -> Path:
    """Return the directory that holds flows/ and prefect.yaml; raises `NotFound`."""
    flows = importlib.util.find_spec("flows")
    for place in (flows.submodule_search_locations or ()) if flows else ():
        if (Path(place).parent / "prefect.yaml").is_file():
            return Path(place).parent
    raise NotFound(
        "flows/ and prefect.yaml are not on the path: they are in no wheel",
        hint="work in a checkout of the project, installed with `pip install -e`",
    )


def enter_checkout() -> dict[str, str]:
    """Return where the flows are on this machine: the pull step in prefect.yaml."""
    return {"directory": str(find_checkout())}
