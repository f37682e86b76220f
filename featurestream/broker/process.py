"""The life of the embedded broker: one Apache Kafka process for each home folder."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import psutil

from featurestream.broker import archive, ports
from featurestream.broker.config import DATA, HOST, broker_command, format_command, server_properties
from featurestream.broker.exclusive import exclusive, folder_error
from featurestream.broker.jars import install_jars, jar_folder, kafka_version, locked_jars
from featurestream.broker.java import Java, find_java
from featurestream.errors import BrokerError, UsageError
from featurestream.kafka.admin import ping

_log = logging.getLogger(__name__)

READY_S = 60.0  # 1.5 s on an idle machine; one that is short of CPU or has many segments to recover gets time
LOCK_S = 120.0
ROOM_MB = 100  # below this a start fails somewhere deep in Kafka, with files half written
FULL_MB = 16  # Kafka ends when a segment, an index or a checkpoint cannot be written any more
POLL_S = 0.02
RELEASE_S = 2.0  # a killed process is no longer seen some time before the kernel has closed its files and ports
SHOWN_LINES = 12
BIND_ATTEMPTS = 3

_TROUBLE: Final = re.compile(r"No space left on device|\b(ERROR|FATAL)\b|OutOfMemoryError")

# Detached for good: the shell ends at once, init adopts Java, and no parent has a child to wait for.
DETACH = '"$@" >>broker.log 2>&1 </dev/null & echo $!'


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of an embedded broker. ``bootstrap_servers`` and ``pid`` are None while it does not run."""

    running: bool
    bootstrap_servers: str | None
    pid: int | None
    home: Path
    version: str


class EmbeddedBroker:
    """The Apache Kafka broker whose data, settings and log lie in ``home``.

    A home has one broker: whoever starts it, everybody who names the same home sees and shares it. It outlives the
    process that started it, listens on loopback only, and comes back on the same data and port after any death.

    Files in ``home``: ``data/`` (Kafka's), ``server.properties`` (written at each start; it is also where the ports
    are remembered), ``broker.log`` and ``broker.log.1`` (this run and the one before), ``broker.pid``, ``lock``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()  # one name for one folder: it is part of the mark
        # First among Java's arguments: how a process is recognised as this home's broker, whatever its id is.
        self._mark = f"-Dfeaturestream.home={self.home}"

    def status(self) -> BrokerStatus:
        """Return what runs now; nothing is started or written."""
        process = self._find()
        known = ports.read_ports(self._properties())
        if process is None or known is None:
            return BrokerStatus(False, None, None, self.home, kafka_version())
        return BrokerStatus(True, f"{HOST}:{known[0]}", process.pid, self.home, kafka_version())

    def up(self, progress: Callable[[str], None] | None = None) -> BrokerStatus:
        """Return the status of the broker once it answers clients; start it where it does not run.

        Any number of processes may call this at once: one starts it, all get it. ``progress`` gets lines about what
        takes time (a first download) or has changed (a port). Raises BrokerError, with the last lines of the log
        where there are any, and MissingExtraError before the first download where jgo is not installed.
        """
        say = progress or _log.info
        with exclusive(self.home / "lock", what="starting or stopping the embedded broker", timeout_s=LOCK_S):
            process = self._find()
            # One that has just been killed is still there for a moment: then it ends instead of answering.
            if process is None or not self._wait_ready(process):
                self._start(say)
        return self.status()

    def down(self, timeout_s: float = 30.0) -> bool:
        """Stop the broker; return False where none ran. After ``timeout_s`` seconds it is killed (it recovers)."""
        if not self.home.exists():
            return False
        with exclusive(self.home / "lock", what="starting or stopping the embedded broker", timeout_s=LOCK_S):
            process = self._find()
            if process is not None:
                written = archive.written_by(process.cmdline())
                if self._stop(process, timeout_s) and written is not None:
                    archive.keep(written)
            (self.home / "broker.pid").unlink(missing_ok=True)
            return process is not None

    def logs(self, lines: int = 50) -> list[str]:
        """Return the last lines that the broker wrote in this run, or in the last one where it does not run."""
        try:
            text = (self.home / "broker.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError as error:
            raise UsageError(
                f"the embedded broker has no log in {self.home}", hint="it has not run yet: featurectl broker up"
            ) from error
        return text.splitlines()[-lines:] if lines > 0 else []

    def why_gone(self, bootstrap_servers: str) -> str | None:
        """Return why nothing answers at an address: None where it is not this broker's, or the broker runs.

        The reason is a full disk (of which its log, on the same disk, often cannot tell), else its log's last error.
        """
        known = ports.read_ports(self._properties())
        if known is None or bootstrap_servers != f"{HOST}:{known[0]}" or self._find() is not None:
            return None
        free_mb = shutil.disk_usage(self.home).free // 2**20
        errors = [line.strip() for line in self.logs(1000) if _TROUBLE.search(line)]
        if free_mb < FULL_MB:
            reason = f": its disk is full, {free_mb} MB are free there"
        else:
            reason = f"; its log's last error: {errors[-1]}" if errors else ""
        return f"the embedded broker in {self.home} has ended{reason}"

    # ---- finding it -------------------------------------------------------------------------------------------

    def _find(self) -> psutil.Process | None:
        """Return the live broker process of this home.

        The process id in ``broker.pid`` is only where to look first. What counts is the mark on the command line, so
        that neither an id that another program has by now nor a lost file can mislead.
        """
        try:
            candidate = psutil.Process(int((self.home / "broker.pid").read_text(encoding="utf-8")))
        except (OSError, ValueError, OverflowError, psutil.Error):
            candidate = None
        if candidate is not None and self._is_ours(candidate):
            return candidate
        return next((process for process in psutil.process_iter() if self._is_ours(process)), None)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.cmdline()[1:2] == [self._mark])  # that of a zombie is empty
        except psutil.Error:
            return False

    def _properties(self) -> str:
        try:
            return (self.home / "server.properties").read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    # ---- starting it ------------------------------------------------------------------------------------------

    def _start(self, say: Callable[[str], None]) -> None:
        java = find_java()
        jars = install_jars(locked_jars(), jar_folder(), say)
        self._check_folder()
        classes = archive.find_archive(java, jars, jar_folder())
        sharing = classes.options(hashlib.sha256(str(self.home).encode()).hexdigest()[:12]) if classes else []
        for attempt in range(1, BIND_ATTEMPTS + 1):
            self._settle_ports(say)
            if not (self.home / DATA / "meta.properties").exists():  # what formatting writes last
                self._format(java, jars)
            process = self._spawn(broker_command(java, jars, self._mark, sharing))
            try:
                if self._wait_ready(process):
                    return
            except BrokerError:
                self._stop(process, timeout_s=0)
                raise
            # Another program may have taken a port between our look and Kafka's bind: that is worth another try.
            bind_failed = any("Address already in use" in line for line in self.logs(1000))
            if not bind_failed or attempt == BIND_ATTEMPTS:
                raise self._failed("ended while it started")

    def _check_folder(self) -> None:
        """Raise BrokerError where the data folder is full, cannot be written or is in another process's hands."""
        data = self.home / DATA
        try:
            data.mkdir(parents=True, exist_ok=True)
            free_mb = shutil.disk_usage(data).free // 1_000_000
            with (data / ".lock").open("a") as lock:  # Kafka's own lock file
                if not _within(RELEASE_S, lambda: _can_lock(lock)):
                    raise BrokerError(
                        f"the broker's data in {data} is in use by {_holder_of(data / '.lock')}",
                        hint="end that process, or name another folder with FEATURESTREAM_HOME",
                    )
        except OSError as error:
            raise folder_error(data, error) from error
        if free_mb < ROOM_MB:
            raise BrokerError(
                f"no room for the broker's data: {free_mb} MB free in {data}, at least {ROOM_MB} MB are needed",
                hint="make room, or name another folder with FEATURESTREAM_HOME",
            )

    def _settle_ports(self, say: Callable[[str], None]) -> None:
        """Write server.properties, with the ports of the last start where they are free."""
        remembered = ports.read_ports(self._properties())
        _within(RELEASE_S, lambda: all(ports.is_free(port) for port in remembered or ()))
        chosen = ports.choose_ports(self.home, remembered)
        if remembered and chosen[0] != remembered[0]:
            say(f"port {remembered[0]} is taken by another program: the embedded broker moves to {chosen[0]}")
        partial = self.home / "server.properties.new"
        try:
            partial.write_text(server_properties(*chosen), encoding="utf-8")
            partial.replace(self.home / "server.properties")
        except OSError as error:
            raise folder_error(self.home, error) from error

    def _format(self, java: Java, jars: list[Path]) -> None:
        done = subprocess.run(
            format_command(java, jars),
            cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise BrokerError(
                f"the broker's data folder {self.home / DATA} cannot be prepared: {' | '.join(said[-SHOWN_LINES:])}"
            )

    def _spawn(self, command: list[str]) -> psutil.Process:
        log = self.home / "broker.log"
        try:
            if log.exists():
                log.replace(self.home / "broker.log.1")
            started = subprocess.run(
                ["/bin/sh", "-c", DETACH, "sh", *command],
                cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True,
                start_new_session=True,  # Ctrl-C in the terminal that started it is not meant for it
            )  # fmt: skip
            pid = int(started.stdout)
            (self.home / "broker.pid").write_text(f"{pid}\n", encoding="utf-8")
        except OSError as error:
            raise folder_error(self.home, error) from error
        try:
            return psutil.Process(pid)
        except psutil.NoSuchProcess as error:
            raise self._failed("ended at once") from error

    def _wait_ready(self, process: psutil.Process) -> bool:
        """Return True when the broker answers a client, False when it has ended; BrokerError after ``READY_S``."""
        known = ports.read_ports(self._properties())
        if known is None:
            raise BrokerError(
                f"an embedded broker runs (process {process.pid}), but {self.home / 'server.properties'} is gone",
                hint="stop it and start it again: featurectl broker down",
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not _is_alive(process):
                return False
            # The client library backs off on a closed port: it is asked only when the port is open.
            if ports.is_open(known[0]):
                try:
                    ping(f"{HOST}:{known[0]}", 1.0)
                except BrokerError:
                    continue
                return True
            time.sleep(POLL_S)
        raise self._failed(f"(process {process.pid}) has not answered for {READY_S:.0f} s")

    def _failed(self, how: str) -> BrokerError:
        lines = [line for line in self.logs(1000) if line.strip() and not line.startswith("\tat ")][-SHOWN_LINES:]
        said = "\n  ".join(lines) or "nothing"
        return BrokerError(
            f"the embedded broker {how}; the end of its log {self.home / 'broker.log'}:\n  {said}\n",
            hint="the whole log: featurectl broker logs -n 1000",
            log=lines,
        )

    # ---- ending it --------------------------------------------------------------------------------------------

    def _stop(self, process: psutil.Process, timeout_s: float) -> bool:
        """End the process; return whether it ended by itself, not killed."""
        for send, limit_s in ((process.terminate, timeout_s), (process.kill, 10.0)):
            try:
                send()
            except psutil.NoSuchProcess:
                return False
            if _within(limit_s, lambda: not _is_alive(process)):
                return bool(send == process.terminate)
            _log.warning("the embedded broker (process %d) did not end within %.0f s", process.pid, limit_s)
        raise BrokerError(
            f"the embedded broker (process {process.pid}) cannot be ended",
            hint="it is stuck in the kernel, most likely on its disk: look there",
        )


def _within(limit_s: float, condition: Callable[[], bool]) -> bool:
    """Return True as soon as ``condition`` holds, False when it still does not after ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _can_lock(file: IO[str]) -> bool:
    """Tell whether no other process holds the kind of lock on ``file`` that Java takes."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs. One that has ended and waits for its parent (a zombie) does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _holder_of(path: Path) -> str:
    """Name the process that has ``path`` open, for an error message."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(opened.path == str(path) for opened in process.open_files()):
                return f"process {process.pid} ({process.name()})"
        except psutil.Error:  # others' processes do not tell
            continue
    return "a process that cannot be seen from here (another user's, or in a container)"
