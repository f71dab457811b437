"""Records docs/images/migration.svg: a real migration, as the terminal shows it.

    python deployments/recording.py

In a throwaway home: `init`, a second host target, and the commands below, typed into a
shell of this machine. Needs nothing else; takes about a minute.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).resolve().parent.parent / "docs/images/migration.svg"
WIDTH = 116
COMMANDS = (
    "lobstertrap status",
    "lobstertrap migrate hello --to server --dry-run",
    "lobstertrap migrate hello --to server",
    "lobstertrap status",
    "lobstertrap history hello",
)
SECOND = '\n[targets.server]\nkind = "host"\nroot = "~/server"\n'
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_PODMAN = re.compile(r"\n\[targets\.laptop\].*?\n\n", re.DOTALL)


def main() -> None:
    """Run everything and write the picture."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "HOME": home,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": str(WIDTH),
            "PREFECT_HOME": f"{home}/.prefect",
        }
        run("lobstertrap init --yes", home, environment)
        config = Path(home, "lobstertrap.toml")
        config.write_text(_PODMAN.sub("\n", config.read_text()) + SECOND)
        run("lobstertrap launch hello --on desk", home, environment)
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        try:
            for command in COMMANDS:
                console.print(Text(f"$ {command}", style="bold green"))
                said = run(command, home, environment).replace(home, "~")
                console.print(Text.from_ansi(said), soft_wrap=True)
        finally:
            run("lobstertrap stop hello", home, environment)
    picture = console.export_svg(title="an agent moves")
    PICTURE.write_text(_FONTS.sub("", picture))  # which would be asked of the network
    print(PICTURE)


def run(command: str, home: str, environment: dict[str, str]) -> str:
    """Run one command and return what it printed; ends the program when it fails."""
    done = subprocess.run(
        shlex.split(command),
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
