"""Adoption: an agent that another tool deployed becomes one of ours, state and all.

An *original* is that other deployment. `podman`, `kubernetes` and `host` find originals
and say what they are (`found`); `draft` makes a spec of one, with its secrets as
references; `adoption` takes the first snapshot and, when asked, lets our agent take the
original's place. Until then nothing of the original is changed.
"""

from lobstertrap.adopt.adoption import abort, begin, switch
from lobstertrap.adopt.draft import Draft, draft, to_yaml
from lobstertrap.adopt.found import Found, Mount, Originals

__all__ = [
    "Draft",
    "Found",
    "Mount",
    "Originals",
    "abort",
    "begin",
    "draft",
    "switch",
    "to_yaml",
]
