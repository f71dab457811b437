"""Lobster Trap: an agent packaged once, snapshotted, and moved between targets.

The nouns: an *agent* (`AgentSpec`) runs on a *target*; its *volumes* are kept as
*snapshots* in a *repository* inside an object *store*; a *migration* moves the agent
to another target under a *lease* whose *epoch* says which copy may run.
"""

__version__ = "0.1.0"
