"""featurestream.broker.jars: only the locked jars are used. The repository is a small web server of our own."""

from __future__ import annotations

import gc
import hashlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from featurestream.broker.exclusive import exclusive
from featurestream.broker.jars import Jar, format_lock, install_jars, kafka_version, locked_jars, parse_lock
from featurestream.errors import BrokerError, MissingExtraError

# jgo leaves the responses that it does not read to the garbage collector, which then finds their sockets open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def jar_of(artifact: str, content: bytes) -> Jar:
    """The locked jar ``lab:<artifact>:1.0`` with this content."""
    return Jar("lab", artifact, "1.0", "", hashlib.sha256(content).hexdigest())


CONTENT = {"one": b"first jar", "two": b"second jar" * 1000}
ONE, TWO = (jar_of(name, content) for name, content in CONTENT.items())


class Repository(ThreadingHTTPServer):
    """A Maven repository: ``files`` by URL path; each of ``cut`` is broken off half way, so many times."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), RepositoryHandler)
        self.files = {f"/lab/{name}/1.0/{name}-1.0.jar": content for name, content in CONTENT.items()}
        self.cut: dict[str, int] = {}
        self.asked: list[str] = []


class RepositoryHandler(BaseHTTPRequestHandler):
    """Answers from the Repository that it belongs to."""

    server: Repository

    def do_GET(self) -> None:  # the name is http.server's
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.cut.get(self.path, 0) > 0:
            self.server.cut[self.path] -= 1
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing on stderr."""


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    """A repository that jgo's settings name as central, and an empty Maven repository of the user's."""
    with Repository() as server:
        (tmp_path / "jgo.conf").write_text(
            f"[repositories]\ncentral = http://ada:hunter2@127.0.0.1:{server.server_port}\n"
        )
        monkeypatch.setenv("JGO_CONFIG_FILE", str(tmp_path / "jgo.conf"))
        monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    gc.collect()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the jars go; it does not exist yet."""
    return tmp_path / "cache" / "jars"


def names_in(folder: Path) -> list[str]:
    """The visible files of a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_shipped_lock_is_sorted_holds_sums_and_no_address() -> None:
    text = format_lock(locked_jars())
    assert parse_lock(text) == locked_jars() == sorted(locked_jars())
    assert len(locked_jars()) == 46
    assert kafka_version() == "4.3.1"
    assert "//" not in text
    assert text.splitlines()[0].startswith("at.yawk.lz4:lz4-java:1.10.2  252dabd586d2")


def test_a_classifier_is_part_of_coordinate_and_file_name() -> None:
    (jar,) = parse_lock(f"org.x:native:2.0:linux-x86_64  {'0' * 64}\n")
    assert jar.filename == "native-2.0-linux-x86_64.jar"
    assert jar.coordinate == "org.x:native:2.0:linux-x86_64"


def test_missing_jars_are_downloaded_once_and_progress_is_told(repository: Repository, folder: Path) -> None:
    said: list[str] = []
    paths = install_jars([ONE, TWO], folder, said.append)
    assert [path.read_bytes() for path in paths] == [CONTENT["one"], CONTENT["two"]]
    assert said == ["downloading Apache Kafka 4.3.1, once: 2 jars from 127.0.0.1"]
    assert install_jars([ONE, TWO], folder, said.append) == paths
    assert len(said) == 1
    assert len(repository.asked) == 2
    assert not list(folder.glob(".download-*"))


def test_a_corrupted_jar_in_the_cache_is_refused_and_named(repository: Repository, folder: Path) -> None:
    install_jars([ONE, TWO], folder)
    bad = folder / "two-1.0.jar"
    bad.write_bytes(CONTENT["two"][:-1] + b"!")
    with pytest.raises(BrokerError) as caught:
        install_jars([ONE, TWO], folder)
    text = str(caught.value)
    assert text.startswith("two-1.0.jar is not the jar that was released as lab:two:1.0: its SHA-256 is ")
    assert TWO.sha256 in text
    assert hashlib.sha256(bad.read_bytes()).hexdigest() in text
    assert f"delete {bad} and start again" in text
    assert caught.value.exit_code == 3


def test_a_jar_that_arrives_with_another_content_is_refused_and_not_kept(repository: Repository, folder: Path) -> None:
    repository.files["/lab/two/1.0/two-1.0.jar"] = b"something else"
    with pytest.raises(BrokerError, match=r"two-1\.0\.jar is not the jar .* it came from 127\.0\.0\.1"):
        install_jars([TWO], folder)
    assert names_in(folder) == []


def test_a_download_that_is_cut_is_tried_again(repository: Repository, folder: Path) -> None:
    repository.cut["/lab/two/1.0/two-1.0.jar"] = 1
    (path,) = install_jars([TWO], folder)
    assert path.read_bytes() == CONTENT["two"]
    assert len(repository.asked) == 2


def test_a_jar_that_the_repository_does_not_have_is_named_and_no_password_is_shown(
    repository: Repository, folder: Path
) -> None:
    with pytest.raises(BrokerError) as caught:
        install_jars([ONE, jar_of("three", b"")], folder)
    assert "127.0.0.1 has no three-1.0.jar (lab:three:1.0)" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_a_killed_download_left_is_removed_and_never_used(repository: Repository, folder: Path) -> None:
    left_over = folder / ".download-abc" / "lab" / "one" / "1.0" / "one-1.0.jar"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(CONTENT["one"][:4])
    (path,) = install_jars([ONE], folder)
    assert path.read_bytes() == CONTENT["one"]
    assert not left_over.exists()


def test_a_jar_of_the_users_maven_repository_is_copied_without_any_request(
    repository: Repository, folder: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "m2" / "lab" / "one" / "1.0" / "one-1.0.jar"
    prepared.parent.mkdir(parents=True)
    prepared.write_bytes(CONTENT["one"])
    (path,) = install_jars([ONE], folder)
    assert path.read_bytes() == CONTENT["one"]
    assert prepared.exists()
    assert repository.asked == []


def test_two_that_install_at_once_download_each_jar_once(repository: Repository, folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: install_jars([ONE, TWO], folder), range(2))
    assert first == second
    assert len(repository.asked) == 2


def test_without_jgo_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    with pytest.raises(MissingExtraError, match=r'pip install "featurestream\[broker\]"'):
        install_jars([ONE], folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=f"cannot write in {tmp_path}/file/jars: Not a directory"):
        install_jars([ONE], tmp_path / "file" / "jars")


def test_a_lock_that_is_held_too_long_is_an_error_that_says_what_its_holder_does(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "lock", what="starting", timeout_s=1),
        pytest.raises(BrokerError, match="another process has been starting for more than 0 s"),
        exclusive(tmp_path / "lock", what="starting", timeout_s=0),
    ):
        pass
