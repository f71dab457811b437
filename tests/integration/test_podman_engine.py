"""The engines that the demo and the tests run on."""

from __future__ import annotations

import pytest

from lobstertrap.targets.podman_engine import PodmanEngine

pytestmark = pytest.mark.podman


def test_engines_have_storage_of_their_own(
    podman_laptop, podman_server, podman_tcp, podman_rootless
):
    engines = (podman_laptop, podman_server, podman_tcp, podman_rootless)

    roots = {e.run("info", "--format", "{{.Store.GraphRoot}}").strip() for e in engines}
    volumes = {
        e.run("info", "--format", "{{.Store.VolumePath}}").strip() for e in engines
    }

    assert roots == {str(e.directory / "storage") for e in engines}
    assert volumes == {str(e.directory / "storage/volumes") for e in engines}


def test_an_engine_leaves_nothing_behind(tmp_path):
    with PodmanEngine(tmp_path / "engine") as engine:
        engine.run("volume", "create", "kept")
        left = engine._run

        assert (tmp_path / "engine/storage/volumes/kept").exists()

    assert not left.exists()
    assert not (tmp_path / "engine").exists()
