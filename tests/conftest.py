"""What every test may use; the real parts are started by tests/fixtures/."""

pytest_plugins = [
    "tests.fixtures.s3",
    "tests.fixtures.podman",
    "tests.fixtures.cluster",
    "tests.fixtures.prefect",
]
