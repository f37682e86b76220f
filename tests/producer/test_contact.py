"""What the user hears of a broker that is away."""

from __future__ import annotations

import threading

import pytest

from featurestream_producer import contact
from featurestream_producer.contact import ContactWatch


class Listener:
    """Plays the silence of a broker, and hears what is said of it."""

    def __init__(self) -> None:
        self.silent_s = 0.0
        self.said: list[str] = []
        self._news = threading.Condition()

    def say(self, line: str) -> None:
        with self._news:
            self.said.append(line)
            self._news.notify_all()

    def hears(self, count: int) -> list[str]:
        with self._news:
            assert self._news.wait_for(lambda: len(self.said) >= count, 10)
            return self.said


def test_a_silence_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "LOOK_EVERY_S", 0.001)
    listener = Listener()
    with ContactWatch(lambda: listener.silent_s, listener.say):
        listener.silent_s = 5.0
        assert listener.hears(1)[0].startswith("warning: no answer from Kafka for 5 s: waiting for it; nothing is lost")
        listener.silent_s = 61.0
        threading.Event().wait(0.05)
        listener.silent_s = 0.0
        assert listener.hears(2)[1:] == ["Kafka answers again, after 61 s"]
        listener.silent_s = 7.0
        assert "for 7 s" in listener.hears(3)[2]
    assert len(listener.said) == 3


def test_a_short_silence_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "LOOK_EVERY_S", 0.001)
    looked = threading.Semaphore(0)
    said: list[str] = []

    def silent_s() -> float:
        looked.release()
        return contact.SILENT_S - 0.1

    with ContactWatch(silent_s, said.append):
        for _ in range(20):
            assert looked.acquire(timeout=10)
    assert said == []
