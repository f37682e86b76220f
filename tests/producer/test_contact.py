"""What the user hears of a broker that is away."""

from __future__ import annotations

import threading

import pytest

from featurestream_producer import contact
from featurestream_producer.contact import ContactWatch


class Listener:
    """Plays the silence of a broker, and hears what is said of it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._silent_s = 0.0
        self._looks = 0
        self._news = threading.Condition()

    def silent_s(self) -> float:
        with self._news:
            self._looks += 1
            self._news.notify_all()
            return self._silent_s

    def is_silent(self, silent_s: float) -> None:
        """Return when somebody has looked at this silence, and at it again."""
        with self._news:
            self._silent_s, seen = silent_s, self._looks
            assert self._news.wait_for(lambda: self._looks >= seen + 2, 10)

    def say(self, line: str) -> None:
        with self._news:
            self.said.append(line)


def test_a_silence_is_told_once_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "LOOK_EVERY_S", 0.001)
    listener = Listener()
    with ContactWatch(listener.silent_s, listener.say):
        for silent_s in (0.0, 5.0, 61.0, 0.0, 7.0):
            listener.is_silent(silent_s)
    first, second, third = listener.said
    assert first.startswith("warning: no answer from Kafka for 5 s: waiting for it; nothing is lost")
    assert second == "Kafka answers again, after 61 s"
    assert "for 7 s" in third


def test_a_short_silence_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "LOOK_EVERY_S", 0.001)
    listener = Listener()
    with ContactWatch(listener.silent_s, listener.say):
        for _ in range(10):
            listener.is_silent(contact.SILENT_S - 0.1)
    assert listener.said == []
