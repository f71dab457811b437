"""A hook of mkdocs: a link that leads out of docs/ becomes one to the source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "https://github.com/lobstertrap/lobstertrap/blob/main/"
_OUTWARD = re.compile(r"\]\((?:\.\./)+([^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page with such links led to the source, where they work on a site.

    Raises `FileNotFoundError` for one that leads to nothing.
    """
    here = (ROOT / "docs" / page.file.src_uri).parent

    def lead(link: re.Match[str]) -> str:
        path = (here / link[0].removeprefix("](")).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return link[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri}: there is no {path}")
        return f"]({SOURCE}{path.relative_to(ROOT)}"

    return _OUTWARD.sub(lead, markdown)
