"""Object stores: where snapshots and agent records are kept (memory, directory, S3)."""
