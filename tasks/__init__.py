"""Tasks: one lifecycle step per file, named for what it does to which agent.

A task opens what it needs from lobstertrap.toml, calls one domain function and returns
a small value. Its parameters are names and an operation's id, never a secret.
"""
