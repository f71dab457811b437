"""Object stores: where snapshots and agent records are kept (memory, directory, S3).

The nouns: a *store* holds *objects*, byte strings under a *key*; `StoreSettings` say
where one is, and `open_store` opens it.
"""

from __future__ import annotations

from pathlib import Path

from lobstertrap.stores.base import ObjectInfo, ObjectStore, StoredObject
from lobstertrap.stores.conditions import require_conditional_writes
from lobstertrap.stores.settings import StoreSettings, parse_url

__all__ = [
    "ObjectInfo",
    "ObjectStore",
    "StoreSettings",
    "StoredObject",
    "open_store",
    "require_conditional_writes",
    "with_credentials",
]


def open_store(settings: StoreSettings) -> ObjectStore:
    """Return the store that `settings` name, ready to use; asks nothing of it yet.

    An S3 store comes wrapped in `Retrying`. Raises `InvalidInput` for a bad url.
    """
    place = parse_url(settings.url)
    if isinstance(place, Path):
        from lobstertrap.stores.directory import (  # noqa: PLC0415 - only when used
            DirectoryStore,
        )

        return DirectoryStore(place)
    from lobstertrap.stores.retrying import Retrying  # noqa: PLC0415 - only when used
    from lobstertrap.stores.s3 import S3Store  # noqa: PLC0415 - only when used

    return Retrying(S3Store(settings))


def with_credentials(settings: StoreSettings) -> StoreSettings:
    """Return settings that hold everything a mover elsewhere needs to open the store.

    What is not given is filled in from boto3's default chain. A directory needs none,
    and given credentials are kept. Raises `AccessDenied` when there are none.
    """
    if isinstance(parse_url(settings.url), Path):
        return settings
    from lobstertrap.stores.s3_client import (  # noqa: PLC0415 - late: boto3 costs 0.4 s
        with_chain_credentials,
    )

    return with_chain_credentials(settings)
