"""What every test may ask for: a home of the session's own, a broker in it, and a stream name nobody else has."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster, resolve_cluster

# Runs beside the tests in a session of its own. Its standard input ends when the tests do, in whatever way: then it
# stops the broker. A signal handler or an exit hook would not outlive a SIGKILL of pytest.
GUARD = """
import sys
from pathlib import Path
sys.stdin.read()
from featurestream.broker import EmbeddedBroker
EmbeddedBroker(Path(sys.argv[1])).down(timeout_s=5)
"""


@contextmanager
def guarded(home: Path) -> Iterator[None]:
    """Take the broker of ``home`` down when the block ends, and when this process is killed inside it."""
    guard = subprocess.Popen([sys.executable, "-c", GUARD, str(home)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        guard.communicate(timeout=60)
        assert guard.returncode == 0, f"the broker in {home} could not be stopped"


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A broker home of this test session: no test can reach the user's own broker, or the one he has named."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURESTREAM_HOME", str(home))
        patch.delenv("FEATURESTREAM_BOOTSTRAP_SERVERS", raising=False)
        with guarded(home):
            yield home


@pytest.fixture(scope="session")
def broker(session_home: Path) -> Cluster:
    """The session's one broker, started on first use; tests keep apart by stream names (see ``unique``)."""
    return resolve_cluster()


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[Callable[[str], EmbeddedBroker]]:
    """Make brokers of the test's own, by the name of their home; whatever of them runs is stopped afterwards."""
    with ExitStack() as stack:

        def make(name: str = "home") -> EmbeddedBroker:
            stack.enter_context(guarded(tmp_path / name))
            return EmbeddedBroker(tmp_path / name)

        yield make


@pytest.fixture
def unique() -> str:
    """A stream name that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"
