"""Who may ask, and who may not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestream import MemoryLog
from featurestream.errors import OutsideError, UsageError
from featurestream_gateway.serve import listen
from featurestream_gateway.settings import TOKEN_VARIABLE, GatewaySettings, Token, read_token
from tests.gateway.serving import Served, problem_in, serving

SECRET = "a-secret-of-22-letters"


@pytest.fixture(scope="module")
def secured() -> Iterator[Served]:
    """A gateway with a token, on a log without streams."""
    with serving(MemoryLog(), token=Token(SECRET)) as found:
        yield found


@pytest.fixture(scope="module")
def local() -> Iterator[Served]:
    """A gateway without a token, on a log without streams."""
    with serving(MemoryLog()) as found:
        yield found


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "LOCALHOST"])
def test_loopback_needs_no_token(host: str) -> None:
    assert GatewaySettings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example", ""])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(UsageError, match="needs a token"):
        GatewaySettings(host=host)
    assert not GatewaySettings(host=host, token=Token(SECRET)).is_local


@pytest.mark.parametrize(
    ("header", "good"),
    [
        (f"Bearer {SECRET}", True), (f"bearer {SECRET}", True), (f"Bearer  {SECRET}", True),
        (SECRET, False), (f"Basic {SECRET}", False), ("Bearer", False), (f"Bearer {SECRET}x", False),
        (f"Bearer {SECRET[:-1]}", False), ("Bearer é", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_a_request_carries_the_token_or_is_unauthorized(secured: Served, header: str | None, good: bool) -> None:
    headers = {} if header is None else {b"authorization": header.encode()}
    answer = secured.client.get("/v1/streams", headers=headers)
    if good:
        assert answer.status_code == 200
    else:
        assert problem_in(answer)["type"].endswith(":unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/v1/live", "/metrics", "/openapi.json", "/data", "/no/such/path", "/healthz/x"])
def test_every_path_is_behind_the_token(secured: Served, path: str) -> None:
    assert problem_in(secured.get(path))["status"] == 401


def test_health_is_told_without_a_token(secured: Served) -> None:
    assert secured.json("/healthz") == {"status": "ok"}
    assert secured.json("/readyz") == {"status": "ready"}


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True), ("localhost:9999", True), ("127.0.0.1:1", True), ("[::1]:9999", True),
        ("evil.example", False), ("127.0.0.1.evil.example", False), ("[::2]", False), ("10.0.0.1:9999", False),
    ],
)  # fmt: skip
def test_without_a_token_the_gateway_answers_to_its_own_names_alone(local: Served, host: str, good: bool) -> None:
    """A page of another site whose name is made to lead here asks under that name."""
    answer = local.client.get("/v1/streams", headers={"host": host})
    assert answer.status_code == (200 if good else 421)
    if not good:
        problem_in(answer)


def test_with_a_token_it_answers_to_any_name(secured: Served) -> None:
    headers = {"host": "gateway.example", "authorization": f"Bearer {SECRET}"}
    assert secured.client.get("/v1/streams", headers=headers).status_code == 200


@pytest.mark.parametrize("method", ["GET", "OPTIONS"])
def test_no_answer_allows_another_origin(local: Served, method: str) -> None:
    headers = {"origin": "http://evil.example", "access-control-request-method": "GET"}
    answer = local.client.request(method, "/v1/streams", headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_form_of_another_site_cannot_request_samples(local: Served) -> None:
    answer = local.client.post(
        "/v1/streams/x/requests", content=b'{"samples": [1]}', headers={"content-type": "text/plain"}
    )
    assert problem_in(answer)["status"] == 422


def test_the_token_comes_from_a_file_that_nobody_else_can_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    token = read_token(file)
    assert token is not None
    assert token.is_in(f"Bearer {SECRET}".encode())
    file.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others; chmod 600"):
        read_token(file)


@pytest.mark.parametrize("text", ["", "short", "x" * 15, "a secret with blanks in it"])
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(UsageError, match="token") as refused:
        read_token(file)
    assert not text or text not in str(refused.value)


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the token in"):
        read_token(tmp_path / "none")


def test_the_token_comes_from_the_environment_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    token = read_token(None)
    assert token is not None
    assert SECRET not in repr(token) + str(GatewaySettings(token=token))


def test_the_token_stands_in_no_log(secured: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for given in (SECRET, f"x{SECRET}"):
        secured.client.get("/v1/streams", headers={"authorization": f"Bearer {given}"})
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not [record for record in ours if SECRET in record.getMessage()]


def test_a_port_that_is_taken_is_named() -> None:
    with listen(GatewaySettings(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OutsideError, match=f"cannot listen on 127.0.0.1, port {port}: Address already in use"):
            listen(GatewaySettings(port=port))
