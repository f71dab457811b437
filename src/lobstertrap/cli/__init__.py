"""The `lobstertrap` command: what a person types, and how the answers look.

One module per group of commands; each imports what it needs when it is called, so that
`lobstertrap --help` and the read-only commands start quickly and without Prefect.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process and exit with its code."""
    from lobstertrap.cli.app import prepare_process, run  # noqa: PLC0415 - stay light
    from lobstertrap.cli.leaving import leave  # noqa: PLC0415

    prepare_process()
    leave(run())
