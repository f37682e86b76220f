"""The rights that docs/security.md lists suffice, and each that is missing is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featurestream.kafka import KafkaLog
from featurestream.names import reader_group
from tests.producing import BACKBONE, write_images
from tests.secure_broker import SecureBroker
from tests.security.conftest import Outcome, People
from tests.security.rights import STREAM, Grant, documented, granted_to, without
from tests.support import make_manifest, publish

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), 8)


@pytest.fixture(scope="module", autouse=True)
def published(secure: SecureBroker) -> None:
    """The document's stream, published by somebody who may do everything."""
    with KafkaLog(secure.admin) as log:
        publish(log, make_manifest(STREAM, taps=("layer3",)))


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "wanted.txt"
    path.write_text("3\n5\n", encoding="utf-8")
    return path


def produce(images: Path, stream: str, *more: object) -> tuple[object, ...]:
    return ("produce", images, "--stream", stream, "--model", BACKBONE, "--tap", "5=late", "--image-size", "16",
            "--device", "cpu", "--workers", "0", *more)  # fmt: skip


def train(runs: Path) -> tuple[object, ...]:
    return ("train", STREAM, "--tap", "layer3", "--name", "E1", "--epochs", "1", "--device", "cpu",
            "--reporter", "jsonl", "--runs", runs)  # fmt: skip


# ---- the sets suffice ---------------------------------------------------------------------------------------------


def test_a_producers_rights_suffice_to_begin_and_to_go_on(people: People, images: Path) -> None:
    people.may(*granted_to("producer", documented("producer"), "made"))
    made = people.do("producer", *produce(images, "made"))
    assert (made.code, made.err.count("error")) == (0, 0), made.err
    again = people.do("producer", *produce(images, "made", "--passes", "2"))
    assert again.code == 0, again.err
    assert "goes on at batch 1" in again.err


def test_a_trainers_rights_suffice(people: People, tmp_path: Path) -> None:
    people.may(*documented("trainer"))
    done = people.do("trainer", *train(tmp_path))
    assert done.code == 0, done.err
    assert "position" not in done.err
    with KafkaLog(people.broker.admin) as log:
        assert log.committed_positions()[reader_group(STREAM, "E1")]


def test_a_viewers_rights_suffice(people: People) -> None:
    people.may(*documented("viewer"))
    with KafkaLog(people.broker.admin) as log:
        log.commit_positions(reader_group(STREAM, "seen"), {(f"{STREAM}.layer3", 0): 1})
    shown = people.do("viewer", "streams", STREAM, "--json")
    assert shown.code == 0, shown.err
    assert "seen" in {reader["experiment"] for reader in json.loads(shown.out)["readers"]}
    assert STREAM in people.do("viewer", "streams").out
    assert people.do("viewer", "peek", STREAM).code == 0


def test_a_requesters_rights_suffice_and_a_producers_serve_the_request(people: People, images: Path, ids: Path) -> None:
    for role in ("producer", "requester"):
        people.may(*granted_to(role, documented(role), "asked"))
    assert people.do("producer", *produce(images, "asked")).code == 0
    asked = people.do("requester", "request", "asked", "--ids", ids)
    assert asked.code == 0, asked.err
    served = people.do("producer", *produce(images, "asked"))
    assert served.code == 0, served.err
    assert "requested: 2 rows" in served.err


# ---- each right that is missing -----------------------------------------------------------------------------------


def check_refused(outcome: Outcome, right: str) -> None:
    """Exit code 3, and one line that names the right, its topic or group, and the order that grants it."""
    assert outcome.code == 3, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert f"this login lacks the right {right} (" in line
    operation, _, place = right.partition(" on the ")
    kind, _, name = place.partition(" ")
    assert f"--operation {operation} --{kind} {name};" in line
    assert "docs/security.md" in line
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("Create", "Create on the topic {}.manifest"),
        ("Read", "Read on the topic {}.manifest"),
        ("Write", "Write on the topic {}.manifest"),
        ("DescribeConfigs", "DescribeConfigs on the topic {}.late"),
    ],
)
def test_a_producer_is_told_the_right_that_it_lacks(people: People, images: Path, operation: str, named: str) -> None:
    user, stream = f"producer-{operation}", f"made-{operation}"
    people.may(*granted_to(user, without(documented("producer"), operation, f"{STREAM}."), stream))
    check_refused(people.do(user, *produce(images, stream)), named.format(stream))


def test_a_producer_that_may_not_write_a_tap_is_told_so(people: People, images: Path) -> None:
    people.may(*granted_to("producer-tap", without(documented("producer"), "Write", f"{STREAM}."), "half"))
    people.may(Grant("producer-tap", "Write", "topic", "half.manifest", prefixed=False))
    check_refused(people.do("producer-tap", *produce(images, "half")), "Write on the topic half.late")


@pytest.mark.parametrize(
    ("words", "granted", "right"),
    [
        (("train",), (), "Read on the topic photos.manifest"),
        (("train",), ("photos.manifest",), "Read on the topic photos.layer3"),
        (("peek", STREAM), (), "Read on the topic photos.manifest"),
        (("peek", STREAM), ("photos.manifest",), "Read on the topic photos.layer3"),
        (("streams", STREAM), (), "Read on the topic photos.manifest"),
        (("streams", STREAM), ("photos.manifest",), "Read on the topic photos.layer3"),
        (("probe", STREAM), ("photos.manifest",), "Read on the topic photos.layer3"),
        (("picture", STREAM, "--batch", "0", "--row", "0"), (), "Read on the topic photos.manifest"),
    ],
)
def test_a_reader_is_told_the_right_that_it_lacks(
    people: People, tmp_path: Path, words: tuple[str, ...], granted: tuple[str, ...], right: str
) -> None:
    user = "manifest" if granted else "nobody"
    people.may(*(Grant(user, "Read", "topic", name, prefixed=False) for name in granted))
    check_refused(people.do(user, *(train(tmp_path) if words == ("train",) else words)), right)


def test_a_trainer_without_the_group_trains_and_says_what_it_lacks(people: People, tmp_path: Path) -> None:
    people.may(*granted_to("ungrouped", without(documented("trainer"), "Read", f"featurestream.{STREAM}.")))
    done = people.do("ungrouped", *train(tmp_path))
    assert done.code == 0, done.err
    assert "this login lacks the right Read on the group featurestream.photos.E1" in done.err


@pytest.mark.parametrize("user", ["ungrouped", "nobody"])
def test_streams_and_readers_that_a_login_may_not_see_are_not_shown(people: People, user: str) -> None:
    with KafkaLog(people.broker.admin) as log:
        log.commit_positions(reader_group(STREAM, "seen"), {(f"{STREAM}.layer3", 0): 1})
    people.may(*granted_to("ungrouped", without(documented("trainer"), "Read", f"featurestream.{STREAM}.")))
    shown = people.do(user, "streams")
    assert shown.code == 0, shown.err
    assert (STREAM in shown.out) == (user == "ungrouped")
    assert "seen" not in shown.out


@pytest.mark.parametrize(
    ("operation", "name", "right"),
    [
        ("Read", "photos.", "Read on the topic photos.manifest"),
        ("DescribeConfigs", "photos.", "DescribeConfigs on the topic photos.layer3"),
        ("Create", "photos-requests.", "Create on the topic photos-requests.manifest"),
        ("Read", "photos-requests.", "Read on the topic photos-requests.manifest"),
        ("Write", "photos-requests.", "Write on the topic photos-requests.manifest"),
    ],
)
def test_a_requester_is_told_the_right_that_it_lacks(
    people: People, ids: Path, operation: str, name: str, right: str
) -> None:
    user = f"requester-{operation}-{name.strip('.')}"
    people.may(*granted_to(user, without(documented("requester"), operation, name)))
    check_refused(people.do(user, "request", STREAM, "--ids", ids), right)
