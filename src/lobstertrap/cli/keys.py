"""The keys of the repository: `key list`, `key add` and `key remove`."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lobstertrap.cli.output import AsJson, print_json, print_result, print_table
from lobstertrap.cli.running import load_config

if TYPE_CHECKING:
    from lobstertrap.redaction import SecretValue

keys = typer.Typer(
    name="key",
    help="The passphrases that open the repository.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands to the program."""
    app.add_typer(keys)


@keys.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the keys that open the repository; nothing secret is shown.

    Example: lobstertrap key list
    """
    from lobstertrap.repository.keyring import list_keys  # noqa: PLC0415

    found = list_keys(load_config().open_repository())
    if as_json:
        print_json({"keys": [asdict(slot) for slot in found]})
        return
    rows = [[slot.id, slot.kind, slot.label] for slot in found]
    print_table(["key", "kind", "label"], rows)


@keys.command()
def add(
    label: Annotated[str, typer.Option(help="Whose it is, or where it is used.")],
    env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Read it from this environment variable."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Read it from this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let one more passphrase open the repository.

    Without --env or --file it is asked for. To change the passphrase, add the new one,
    name it in lobstertrap.toml, then remove the old one.
    Example: lobstertrap key add --label 2027 --file new.key
    """
    from lobstertrap.redaction import redactor  # noqa: PLC0415 - not for --help
    from lobstertrap.repository.keyring import add_key  # noqa: PLC0415

    repository = load_config().open_repository()
    passphrase = _passphrase(env, file)
    redactor.add(passphrase)
    slot = add_key(repository, passphrase, label=label)
    print_result({"added": slot.id, "label": slot.label}, as_json=as_json)


@keys.command()
def remove(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Its id, or the beginning.")
    ],
    as_json: AsJson = False,
) -> None:
    """Take a key away; never the one by which you open the repository.

    Example: lobstertrap key remove 3fa94c01
    """
    from lobstertrap.repository.keyring import remove_key  # noqa: PLC0415

    config = load_config()
    slot = remove_key(config.open_repository(), key, keep=config.repository_key())
    print_result({"removed": slot.id, "label": slot.label}, as_json=as_json)


def _passphrase(env: str | None, file: Path | None) -> SecretValue:
    from lobstertrap.errors import InvalidInput  # noqa: PLC0415 - not for --help
    from lobstertrap.redaction import SecretValue  # noqa: PLC0415
    from lobstertrap.secrets.sources import EnvSource, FileSource  # noqa: PLC0415

    if env is not None and file is not None:
        raise InvalidInput("a key is read from --env or from --file, not from both")
    if env is not None:
        return EnvSource(environ=os.environ).read(env)
    if file is not None:
        return FileSource(path=file, mode="singleValue").read("value")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(
            "there is nobody to ask for the new key", hint="give --env or --file"
        )
    asked = typer.prompt("new key", hide_input=True, confirmation_prompt=True, err=True)
    return SecretValue(str(asked))
