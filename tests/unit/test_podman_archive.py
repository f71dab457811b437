"""Layers of images that are written without an engine."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from lobstertrap.targets.podman_archive import Layer


def layer_with(source: Path) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        Layer(archive).module("/opt/answer.py", source)
    return written.getvalue()


def test_a_module_brings_what_was_compiled_of_it_the_same_every_time(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("ANSWER = 42\n")
    first = layer_with(source)

    with tarfile.open(fileobj=io.BytesIO(first)) as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "opt" / "answer.py").write_text("ANSWER = 43\n")  # not looked at
    told = subprocess.run(
        [sys.executable, "-c", "import answer; print(answer.ANSWER)"],
        cwd=tmp_path / "opt",
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout == "42\n"
    assert layer_with(source) == first


def test_a_module_of_another_python_is_still_a_file(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("print 'hello'\n")

    with tarfile.open(fileobj=io.BytesIO(layer_with(source))) as archive:
        assert archive.getnames() == ["opt", "opt/answer.py"]
