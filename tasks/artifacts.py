"""Pages in Prefect's UI: what was done is done, whether or not it can be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from lobstertrap.redaction import redactor
from tasks.step import log


def show_markdown(key: str, text: str, description: str) -> None:
    """Show a page, a new version of those with the same key."""
    text = redactor.redact(text)
    _show(key, lambda: create_markdown_artifact(text, key, description=description))


def show_table(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """Show a table, a new version of those with the same key."""
    table = [
        {k: redactor.redact(v) if isinstance(v, str) else v for k, v in row.items()}
        for row in rows
    ]
    _show(key, lambda: create_table_artifact(table, key, description=description))


def _show(key: str, create: Callable[[], Any]) -> None:
    try:
        create()
    except Exception as error:  # the work is done; a page is no reason to fail
        log.warning("'%s' could not be shown in Prefect: %s", key, error)
