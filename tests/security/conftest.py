"""The cluster of these tests, with TLS, logins and ACLs, and ``featurectl`` as one of its users has it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from featurectl.app import main
from tests.secure_broker import SecureBroker, secure_broker
from tests.security.rights import ROLES, Grant

#: Who lacks a right or another: users are made with the cluster, because that takes no time there.
USERS = (
    *("nobody", "manifest", "ungrouped", "producer-tap"),
    *(f"producer-{operation}" for operation in ("Create", "Read", "Write", "DescribeConfigs")),
    *(f"requester-{operation}-photos" for operation in ("Read", "DescribeConfigs")),
    *(f"requester-{operation}-photos-requests" for operation in ("Create", "Read", "Write")),
)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Outcome]


def password_of(user: str) -> str:
    """Return a password that no text contains by chance."""
    return f"hunter2-of-{user}"


@dataclass(frozen=True)
class People:
    """The users of the cluster, each with a client properties file."""

    broker: SecureBroker
    folder: Path
    run: Run

    def may(self, *grants: Grant) -> None:
        """Grant rights."""
        if grants:
            self.broker.grant(grant.binding() for grant in grants)

    def config(self, user: str) -> Path:
        """Return a user's client properties file."""
        return self.broker.write_properties(self.folder / f"{user}.properties", user)

    def do(self, user: str, *words: object) -> Outcome:
        """Run a command as a user."""
        return self.run(*words, "--kafka-config", self.config(user))


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    """One such broker for all tests of this folder, with the users that they name."""
    users = [*ROLES, *USERS]
    with secure_broker(tmp_path_factory.mktemp("secure"), {user: password_of(user) for user in users}) as broker:
        yield broker


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``featurectl WORDS`` in this process, with all that stands between a command and its exit code."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featurectl", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Outcome(end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def people(secure: SecureBroker, tmp_path: Path, run: Run) -> People:
    """The users, with their files in a folder of the test's."""
    folder = tmp_path / "people"
    folder.mkdir()
    return People(secure, folder, run)
