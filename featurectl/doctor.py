"""``featurectl doctor``: what is installed, what can be reached, what is missing, and what to do about it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import typer

from featurectl import options

CANNOT_RUN: Final = 3
PROBE_S: Final = 3.0
ROOM_MB: Final = 1000  # for the broker's data: below this a first stream may already fill the disk

#: What the main job, from images to a trained head, cannot do without.
NEEDED_EXTRAS: Final = ("producer", "consumer")

State = Literal["ok", "missing", "note"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    ``state`` is ``ok``, ``missing`` (it is not there, or does not work) or ``note`` (nothing is wrong, but worth
    knowing). ``needed`` tells whether the main job, produce and train, needs it; ``advice`` is what to do.
    """

    name: str
    state: State
    found: str
    needed: bool = True
    advice: str = ""


def doctor(
    bootstrap_servers: options.BootstrapServers = None,
    kafka_config: options.KafkaConfig = None,
    as_json: options.Json = False,
) -> None:
    """Tell what is installed, reachable or missing, and what to do about it.

    Exit code 0: the main job (images to stream, stream to trained head) can run; 3: it cannot. Starts nothing.
    """
    from featurectl.output import print_json, print_table

    checks = [*check_packages(), *check_devices(), *check_cluster(bootstrap_servers, kafka_config)]
    broken = [check for check in checks if check.needed and check.state == "missing"]
    if as_json:
        for check in checks:
            print_json(asdict(check))
    else:
        words = {"ok": "ok", "note": "note"}
        print_table(
            ["state", "what", "~found", "~what to do"],
            [
                [words.get(check.state, "MISSING" if check.needed else "absent"), check.name, check.found, check.advice]
                for check in checks
            ],
        )
        typer.echo("")
        typer.echo(
            f"the main job cannot run: {', '.join(check.name for check in broken)}"
            if broken
            else "everything that the main job needs is here; try it with: featurectl demo"
        )
    if broken:
        raise typer.Exit(CANNOT_RUN)


def check_packages() -> Iterator[Check]:
    """Yield Python, featurestream and, for every extra, its packages with their versions."""
    import platform
    from importlib.metadata import requires, version

    yield Check("python", "ok", platform.python_version())
    yield Check("featurestream", "ok", version("featurestream"))
    for extra, packages in parse_extras(requires("featurestream") or []).items():
        yield check_extra(extra, packages)


def parse_extras(requirements: Iterable[str]) -> dict[str, list[str]]:
    """Return the packages of each extra, from requirements as a package's metadata has them.

    ``jgo<4,>=3.2; extra == "broker"`` is package jgo of extra broker. The extra ``all``, made of the others, is
    left out.
    """
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        found = re.fullmatch(r"([A-Za-z0-9._-]+)[^;]*;.*\bextra == ['\"]([^'\"]+)['\"].*", requirement)
        if found and found[2] != "all":
            extras.setdefault(found[2], []).append(found[1])
    return extras


def check_extra(extra: str, packages: Iterable[str]) -> Check:
    """Return whether an extra's packages are installed, with their versions or the command that installs them."""
    from importlib.metadata import PackageNotFoundError, version

    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    needed = extra in NEEDED_EXTRAS
    if not missing:
        return Check(f"extra {extra}", "ok", ", ".join(found), needed)
    return Check(
        f"extra {extra}",
        "missing",
        f"no {', '.join(missing)}" + (f" (but {', '.join(found)})" if found else ""),
        needed,
        f'pip install "featurestream[{extra}]"',
    )


def check_devices() -> Iterator[Check]:
    """Yield the GPUs that torch sees, or that there is none."""
    try:
        import torch
    except ImportError:
        return  # the extras have said so
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        yield Check(f"GPU cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / 1e9:.0f} GB", needed=False)
    if not count:
        yield Check(
            "GPU", "note", f"none that torch sees; {torch.get_num_threads()} CPU threads", needed=False,
            advice="a GPU extracts features many times faster; everything works without",
        )  # fmt: skip


def check_cluster(bootstrap_servers: str | None, kafka_config: Path | None) -> Iterator[Check]:
    """Yield whether the cluster that is named answers; where none is named, whether the embedded broker can work."""
    import os

    from featurestream.cluster import VARIABLE, resolve_cluster
    from featurestream.errors import FeatureStreamError

    if not (bootstrap_servers or os.environ.get(VARIABLE) or kafka_config):
        yield from check_embedded()
        return
    try:
        cluster = resolve_cluster(bootstrap_servers, kafka_config, timeout_s=PROBE_S)
    except FeatureStreamError as error:
        yield Check("cluster", "missing", error.message, advice=error.hint or "")
    else:
        yield Check("cluster", "ok", f"Kafka answers at {cluster.bootstrap_servers}")


def check_embedded() -> Iterator[Check]:
    """Yield whether the embedded broker runs, or whether it can be started; nothing is started."""
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home
    from featurestream.errors import FeatureStreamError
    from featurestream.kafka.admin import ping

    home = broker_home()
    status = EmbeddedBroker(home).status()
    if status.running and status.bootstrap_servers is not None:
        try:
            ping(status.bootstrap_servers, PROBE_S)
        except FeatureStreamError as error:
            yield Check("embedded broker", "missing", error.message, advice="see: featurectl broker logs")
        else:
            yield Check("embedded broker", "ok", f"Apache Kafka {status.version} answers at {status.bootstrap_servers}")
    else:
        yield Check("embedded broker", "note", f"Apache Kafka {status.version} does not run", needed=False,
                    advice="commands start it on first use")  # fmt: skip
    yield check_java()
    yield check_jars()
    yield check_room(home)


def check_java() -> Check:
    """Return which Java would run the embedded broker."""
    from featurestream.broker.java import find_java
    from featurestream.errors import BrokerError

    try:
        java = find_java()
    except BrokerError as error:
        return Check("Java", "missing", error.message, advice=error.hint or "")
    return Check("Java", "ok", f"version {java.major}, {java.path} (from {java.source})")


def check_jars() -> Check:
    """Return whether the broker's jars are here and are what the lock says, or can be downloaded."""
    from importlib.util import find_spec

    from featurestream.broker.jars import jar_folder, kafka_version, locked_jars, verify
    from featurestream.errors import BrokerError

    folder, jars = jar_folder(), locked_jars()
    missing = [jar for jar in jars if not (folder / jar.filename).exists()]
    if missing:
        what = f"{len(missing)} of {len(jars)} jars of Apache Kafka {kafka_version()} are not in {folder}"
        if find_spec("jgo") is None:
            return Check("broker's jars", "missing", what, advice='pip install "featurestream[broker]"')
        return Check("broker's jars", "note", what, needed=False, advice="the first start downloads them, once")
    for jar in jars:
        path = folder / jar.filename
        try:
            verify(jar, path, hint=f"delete {path}: the next start downloads it again")
        except BrokerError as error:
            return Check("broker's jars", "missing", error.message, advice=error.hint or "")
    return Check("broker's jars", "ok", f"{len(jars)} of Apache Kafka {kafka_version()}, verified, in {folder}")


def check_room(home: Path) -> Check:
    """Return how much room there is for the embedded broker's data."""
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free_mb = shutil.disk_usage(there).free // 1_000_000
    found = f"{free_mb / 1000:.1f} GB free in {home}"
    if free_mb < ROOM_MB:
        return Check("disk", "missing", found, advice="make room, or name another folder with FEATURESTREAM_HOME")
    return Check("disk", "ok", found)
