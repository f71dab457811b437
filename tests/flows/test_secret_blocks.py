"""Secrets that are in Prefect: a Secret block is read by its name."""

from __future__ import annotations

import secrets

import pytest

from lobstertrap.errors import SecretMissing
from lobstertrap.secret_ref import SecretRef
from lobstertrap.secrets import resolve
from tasks.secret_blocks import read_block

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_api")]


def test_a_reference_to_a_block_is_its_value_and_no_other_is_made_up() -> None:
    from prefect.blocks.system import Secret  # noqa: PLC0415 - after the fixture

    value = f"canary-{secrets.token_hex(12)}"
    Secret(value=value).save("lobstertrap-test", overwrite=True)
    refs = {"KEY": SecretRef(source="prefect", id="lobstertrap-test")}

    found = resolve(refs, {}, {}, {"prefect": read_block})

    assert found["KEY"].reveal() == value
    with pytest.raises(SecretMissing, match="no Secret block 'never-made'"):
        read_block("never-made")
