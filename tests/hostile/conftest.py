"""``featurectl`` in this process, on a log in memory, as the tests of the commands have it."""

from tests.featurectl.conftest import cli, log

__all__ = ["cli", "log"]
