"""An endless producer, five trainers and a reader under random faults: ``python -m tests.faults.soak --minutes 30``.

At the end the oracle reads the stream, each trainer's weights are compared with those of an undisturbed run up to the
same step, and a line is fitted to the memory, the descriptors and the threads of every process. Exit code 1 where
anything is not as it should be; then the folder with all logs is kept and named.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from featurestream.broker import EmbeddedBroker
from featurestream.cluster import Cluster
from featurestream.errors import BrokerError, FeatureStreamError
from featurestream.kafka import KafkaLog
from featurestream.memory import MemoryLog
from featurestream.stream import FeatureStream
from featurestream_consumer.checkpoint import list_checkpoints, load_checkpoint
from featurestream_producer.run import produce
from tests.conftest import guarded
from tests.faults.harm import END_S, cluster_of, kill_broker, segments, stopped, tear
from tests.faults.oracle import Files, Verdict, examine
from tests.faults.programs import Program, run_producer, run_trainer, run_undisturbed
from tests.faults.slopes import Slope, fit
from tests.faults.weights import digest, learnt
from tests.faults.witness import Lines, contents, write_lines, write_yielded
from tests.producing import config, settings, write_images

STREAM = "soak"
TRAINERS = 5
EVERY_S = 0.5  # between two samples
START_S = 300.0  # a machine that is busy with other things gets time
COMPARED_S = 1200.0  # of a short soak; of a long one twice its own time
#: Of each life, from when there was progress after it had begun: what a program takes while it starts is no growth, and
#: one that begins while the broker is away starts when that is back.
WARM_S = 8.0
LIFE = 60  # batches after which the reader is closed, and goes on as another object
FAULTS = (
    "broker SIGKILL", "broker SIGSTOP", "torn tail", "producer SIGKILL", "trainer SIGKILL", "trainer SIGSTOP",
)  # fmt: skip
#: What may be the growth over the longest life of a program, by the lower end of the interval: what is more is growth
#: for certain. Each life fills its caches anew, so the lives of a whole run are not added up.
ALLOWED = {"memory": 32.0, "descriptors": 4.0, "threads": 4.0}
#: Of ours. The broker's memory is Kafka's, and grows until its heap has the size that it may have: it is shown.
JUDGED = ("producer", "trainer")
UNITS = {"memory": "MiB", "descriptors": "", "threads": ""}


# ---- what is watched -------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Samples of every process, and of how far everything has come."""

    broker: EmbeddedBroker
    programs: list[Program]
    log: KafkaLog
    runs: Path
    samples: dict[tuple[str, int], list[tuple[float, dict[str, float]]]] = field(default_factory=dict)
    progress: list[tuple[float, int]] = field(default_factory=list)

    def look(self) -> None:
        """Take one sample of everything that runs."""
        now = time.monotonic()
        roles = [("broker", self.broker.status().pid or 0)]
        roles += [(program.role, program.pid) for program in self.programs]
        for role, pid in roles:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if now - self._at_work_since(process_start(process)) < WARM_S:
                    continue
                values = {
                    "memory": process.memory_info().rss / 2**20,
                    "descriptors": float(process.num_fds()),
                    "threads": float(process.num_threads()),
                }
                self.samples.setdefault((role.split()[0], pid), []).append((now, values))
        self.progress.append((now, self._steps()))

    def _at_work_since(self, begun: float) -> float:
        """Return when somebody came further for the first time after a moment."""
        looks = zip(self.progress, self.progress[1:], strict=False)
        return next((at for (_, before), (at, steps) in looks if at > begun and steps > before), float("inf"))

    def _steps(self) -> int:
        files = [list_checkpoints(self.runs / f"E{n}" / "checkpoints")[:1] for n in range(TRAINERS)]
        return sum(found[0].step for found in files if found)

    def slopes(self) -> dict[tuple[str, str], Slope | None]:
        """Return the growth of each kind of process, by what is measured."""
        return {
            (role, what): fit(
                [[(at, values[what]) for at, values in life] for (of, _), life in self.samples.items() if of == role]
            )
            for role in ("broker", "producer", "trainer")
            for what in ALLOWED
        }

    def longest_min(self) -> dict[str, float]:
        """Return for how many minutes the longest life of each kind of process was watched."""
        longest: dict[str, float] = defaultdict(float)
        for (role, _), life in self.samples.items():
            longest[role] = max(longest[role], (life[-1][0] - life[0][0]) / 60)
        return longest


def process_start(process: psutil.Process) -> float:
    """Return when a process began, on the monotonic clock."""
    return time.monotonic() - (time.time() - process.create_time())


class Follower:
    """A reader that follows the stream through everything, and is closed again and again."""

    def __init__(self, cluster: Cluster, file: Path) -> None:
        self.total: int | None = None
        self.error: str | None = None
        self._log = KafkaLog(cluster)
        self._file = file
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        lines, state = Lines(self._file), None
        while self.total is None or state is None or state["position"][0] < self.total:
            try:
                with FeatureStream(STREAM, log=self._log, on_wait=self._waiting, reader="follower") as stream:
                    if state is not None:
                        stream.load_state_dict(state)
                    for batch in itertools.islice(stream, LIFE):
                        for words in contents(batch):
                            lines.write(*words)
                        state = stream.state_dict()
                        self._waiting(0)
            except (BrokerError, TimeoutError):  # who opens a stream while nobody answers asks again
                continue
            except FeatureStreamError as error:
                self.error = str(error)
                return

    def _waiting(self, _: float) -> None:
        if self.total is not None:
            raise TimeoutError("the end is known now: look again")


# ---- the run ---------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a soak."""

    seed: int
    minutes: float
    faults: Counter[str]
    lives: dict[str, int]
    batches: int
    steps: int
    stall_s: float
    verdict: Verdict
    slopes: dict[tuple[str, str], Slope | None]
    longest_min: dict[str, float]

    @property
    def growing(self) -> list[str]:
        """What grows for certain by more than is allowed."""
        return [
            f"{what} of the {role}"
            for (role, what), slope in self.slopes.items()
            if role in JUDGED and slope is not None and slope.low * self.longest_min[role] > ALLOWED[what]
        ]

    def lines(self) -> list[str]:
        """Return what is printed."""
        faults = ", ".join(f"{count} x {name}" for name, count in sorted(self.faults.items()))
        return [
            f"soak of {self.minutes:g} min, seed {self.seed}: {self.faults.total()} faults ({faults})",
            f"{self.batches} batches published, {self.steps} steps trained, {sum(self.lives.values())} lives of "
            f"{len(self.lives)} programs; longest stall {self.stall_s:.1f} s",
            *self.verdict.lines(),
            *(slope_line(role, what, slope) for (role, what), slope in self.slopes.items()),
            f"longest lives: {', '.join(f'{role} {minutes:.1f} min' for role, minutes in self.longest_min.items())}",
            f"growing: {', '.join(self.growing) or 'nothing'}",
        ]


def slope_line(role: str, what: str, slope: Slope | None) -> str:
    """Return one row of the table of slopes."""
    if slope is None:
        return f"{role:9} {what:12} too few samples"
    unit = f"{UNITS[what]}/min".lstrip("/") if UNITS[what] else "a minute"
    return f"{role:9} {what:12} {slope.per_minute:+8.3f} {unit:9} 95 %: {slope.low:+.3f} to {slope.high:+.3f}"


def soak(minutes: float, seed: int, folder: Path, say: Callable[[str], None] = print) -> Outcome:
    """Run it all in ``folder``."""
    chance = random.Random(seed)
    images, runs, logs = write_images(folder / "images"), folder / "runs", folder / "logs"
    logs.mkdir(parents=True)
    broker = EmbeddedBroker(folder / "broker")
    with ExitStack() as stack:
        stack.enter_context(guarded(folder / "broker"))
        cluster = cluster_of(broker)
        address = cluster.bootstrap_servers
        log = stack.enter_context(KafkaLog(cluster))
        fields = settings(images, STREAM, passes=None, ahead=20, idle="pause")
        producer = Program("producer", run_producer, (address, fields, str(logs / "producer.txt")))
        trainers = [
            Program(f"trainer {n}", run_trainer, (address, experiment(runs, n), str(logs / f"trainer-{n}.txt")))
            for n in range(TRAINERS)
        ]
        programs = [producer, *trainers]
        for program in programs:
            stack.callback(_kill, program)
        producer.start()
        wait_until(lambda: _exists(log), producer)
        for trainer in trainers:
            trainer.start()
        follower = Follower(cluster, folder / "pieces.txt")
        watch = Watch(broker, programs, log, runs)
        wait_until(lambda: all(list_checkpoints(runs / f"E{n}" / "checkpoints") for n in range(TRAINERS)), *programs)
        healed, faults = _harm(minutes, chance, broker, programs=programs, watch=watch, say=say)
        say("the end: everybody is interrupted, then judged")
        left = [program.role for program in programs if not program.end()]
        with FeatureStream(STREAM, log=log, stop="latest") as whole:
            follower.total = whole.stop or 0
            uninterrupted = write_yielded(folder / "whole.txt", whole)
        follower.thread.join(END_S)
        left += ["follower"] if follower.thread.is_alive() else []
        if follower.error:
            raise AssertionError(follower.error)
        resumed = folder / "pieces.txt"
        steps = compared(runs, address, folder, max(COMPARED_S, 120 * minutes))
        pieces = [line.split() for line in resumed.read_text().splitlines()]
        files = Files(
            reference=reference(images, folder, follower.total),
            yielded=[uninterrupted, resumed],
            resumed=write_lines(folder / "resumed.txt", [*pieces, *(one for one, _ in steps)]),
            uninterrupted=write_lines(
                folder / "uninterrupted.txt",
                [*(line.split() for line in uninterrupted.read_text().splitlines()), *(other for _, other in steps)],
            ),
            healed=write_lines(folder / "healed.txt", recoveries(healed, watch)),
            left=write_lines(folder / "left.txt", ([name] for name in left)),
        )
        verdict = examine(STREAM, address, files)
        return Outcome(
            seed, minutes, faults, {program.role: program.lives for program in programs}, follower.total,
            sum(int(one[3]) for one, _ in steps), stall(watch), verdict, watch.slopes(), watch.longest_min(),
        )  # fmt: skip


def _harm(
    minutes: float, chance: random.Random, broker: EmbeddedBroker, *, programs: list[Program], watch: Watch,
    say: Callable[[str], None],
) -> tuple[list[tuple[float, str]], Counter[str]]:  # fmt: skip
    """Do harm until the time is over; return when each fault had ended, and how many of each there were."""
    healed: list[tuple[float, str]] = []
    faults: Counter[str] = Counter()
    tick, end = threading.Event(), time.monotonic() + 60 * minutes
    following = time.monotonic() + chance.uniform(2, 5)
    while time.monotonic() < end:
        tick.wait(EVERY_S)
        watch.look()
        for program in programs:
            program.keep_alive()
        if time.monotonic() >= following and end - time.monotonic() > WARM_S and has_healed(healed, watch):
            name = chance.choice(FAULTS)
            inflict(name, chance, broker, programs)
            healed.append((time.monotonic(), name))
            faults[name] += 1
            say(f"{60 * minutes - (end - time.monotonic()):7.1f} s  {name}")
            following = time.monotonic() + chance.uniform(3, 8)
    for _ in range(int(END_S / EVERY_S)):  # everything that was interrupted last has its bound to come back
        if has_healed(healed, watch):
            break
        tick.wait(EVERY_S)
        watch.look()
        for program in programs:
            program.keep_alive()
    return healed, faults


def has_healed(healed: list[tuple[float, str]], watch: Watch) -> bool:
    """Return whether there was progress after the last fault: the next one does not make its recovery longer."""
    return not healed or recoveries(healed[-1:], watch)[0][0] < float("inf")


def inflict(name: str, chance: random.Random, broker: EmbeddedBroker, programs: list[Program]) -> None:
    """Do one fault, and take back what can be taken back."""
    producer, trainer = programs[0], chance.choice(programs[1:])
    pause = threading.Event()
    match name:
        case "broker SIGKILL":
            kill_broker(broker)
            broker.up()
        case "broker SIGSTOP":
            with stopped(broker.status().pid or 0):
                pause.wait(2)
        case "torn tail":
            kill_broker(broker)
            for tap in ("early", "late"):
                for segment in segments(broker.home, f"{STREAM}.{tap}"):
                    tear(segment, chance)
            broker.up()
        case "producer SIGKILL":
            producer.kill()
        case "trainer SIGKILL":
            trainer.kill()
        case _:
            with stopped(trainer.pid):
                pause.wait(2)


def experiment(runs: Path, number: int) -> dict[str, Any]:
    """Return a trainer's configuration: they differ in tap, seed, size of the head and of the batches."""
    return {
        "name": f"E{number}", "stream": STREAM, "taps": ("late", "early")[number % 2], "seed": number,
        "head_args": {"hidden": 8 + number, "dropout": 0.2}, "epochs": 10_000, "batch_size": 5 + 3 * number,
        "runs": runs, "device": "cpu", "reporters": ("jsonl",), "checkpoint_seconds": 1.0,
    }  # fmt: skip


def compared(runs: Path, address: str, folder: Path, limit_s: float) -> list[tuple[list[str], list[str]]]:
    """Return each trainer's weights at a late step, and those of an undisturbed run up to the same one, as words.

    The step is that of the last checkpoint but one: after the newest there may be nothing to read, and an undisturbed
    run would wait for it. The undisturbed ones run in processes like the trainers': how MKL rounds is settled once in a
    process, and in that of the tests it was by others.
    """
    results, others = [], []
    for number in range(TRAINERS):
        _, late, *_ = list_checkpoints(runs / f"E{number}" / "checkpoints")
        state = load_checkpoint(late.path)["trainer"]
        words = [f"trainer-{number}", "at", "step", str(state["step"])]
        results.append([*words, digest(learnt(state))])
        fields = experiment(folder / "undisturbed", number) | {"checkpoint_seconds": 1e9}
        log = folder / "logs" / f"undisturbed-{number}.txt"
        arguments = (address, fields, state["step"], str(folder / f"undisturbed-{number}.txt"), str(log))
        others.append(Program(f"undisturbed {number}", run_undisturbed, arguments))
        others[-1].start()
    undisturbed = []
    for program in others:
        assert program.wait(limit_s) == 0, f"{program.role} did not come to its step: see {program.arguments[-1]}"
        undisturbed.append(Path(program.arguments[-2]).read_text(encoding="utf-8"))
    return [(words, [*words[:-1], other]) for words, other in zip(results, undisturbed, strict=True)]


def reference(images: Path, folder: Path, batches: int) -> Path:
    """Extract the same stream once more, undisturbed and in memory, as far as it has come."""
    log = MemoryLog()
    passes = -(-batches // 6) + 1
    produce(config(images, STREAM, passes=passes), log, say=lambda _: None)
    with FeatureStream(STREAM, log=log) as stream:
        return write_lines(
            folder / "reference.txt",
            ((tap, number, content) for batch in stream for number, tap, content in contents(batch)),
        )


def recoveries(healed: list[tuple[float, str]], watch: Watch) -> list[tuple[float, str]]:
    """Return how long after each fault the trainers, taken together, had come further."""
    found = []
    for at, name in healed:
        before = max((count for when, count in watch.progress if when <= at), default=0)
        after = min((when for when, count in watch.progress if when > at and count > before), default=float("inf"))
        found.append((round(after - at, 2), name))
    return found


def stall(watch: Watch) -> float:
    """Return the longest time in which no trainer has come further."""
    longest, (since, count) = 0.0, watch.progress[0]
    for at, steps in watch.progress:
        longest = max(longest, at - since)
        if steps > count:
            since, count = at, steps
    return longest


def wait_until(condition: Callable[[], object], *programs: Program) -> None:
    """Return when something has come; fail after ``START_S``, or where a program ends."""
    tick, end = threading.Event(), time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < end, "it did not come"
        for program in programs:
            program.keep_alive()
        tick.wait(0.1)


def _exists(log: KafkaLog) -> bool:
    return f"{STREAM}.late" in log.topics()


def _kill(program: Program) -> None:
    if program.process is not None:
        program.process.kill()
        program.process.join(END_S)


def main() -> int:
    """Run a soak of so many minutes; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="featurestream-soak-"))
    print(f"seed {chosen.seed}, in {folder}", flush=True)
    outcome = soak(chosen.minutes, chosen.seed, folder, lambda line: print(line, flush=True))
    print("\n".join(outcome.lines()))
    if outcome.verdict.broken or outcome.growing:
        print(f"not as it should be; everything is kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
