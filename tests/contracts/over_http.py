"""A log that is written to directly and read through a gateway: what the suites of the ports need of one."""

from __future__ import annotations

from typing import Any

from featurestream.http import HttpLog
from featurestream.http.source import HttpSource
from featurestream.ports import Log


class OverHttp:
    """``log``, but for its reading half, which is that of the gateway at ``url``."""

    def __init__(self, log: Log, url: str) -> None:
        self._log = log
        self.http = HttpLog(url)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def source(self) -> HttpSource:
        return self.http.source()

    def topics(self) -> dict[str, int]:
        return self.http.topics()
