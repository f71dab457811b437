"""Compiles batch.c where there is a C compiler; without one all works, only slower."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PLACE = Path("src/lobstertrap/repository")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


class CompileBatch(BuildHookInterface):  # type: ignore[type-arg]
    """Makes libbatch.so beside batch.py, for a wheel and for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say of the wheel that it is for this platform."""
        del version
        source = Path(self.root) / _PLACE / "batch.c"
        library = source.with_name("libbatch.so")
        linux = sys.platform.startswith("linux")
        wrong = _compile(source, library) if linux else "this is not Linux"
        if wrong:
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"batch.c was not compiled: {wrong}\n"
                "all works; snapshots and restores of many small files take longer"
            )
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
        build_data["pure_python"] = False
        build_data["artifacts"].append(str(_PLACE / library.name))


def _compile(source: Path, library: Path) -> str:
    """Return what went wrong, or nothing."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    # A process that uses the old library goes on with it.
    new = library.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run([*compiler, *_FLAGS, "-o", new, source], check=True)
        new.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        new.unlink(missing_ok=True)
        return str(error)
    return ""
