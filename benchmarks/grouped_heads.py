"""One optimiser step of many heads: as a sweep takes it, against one head at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.measure import Clock, Run, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream_consumer.build import build_trainer
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.group import Group, Unit, form_units
from featurestream_consumer.trainer import Once, Trainer

#: (features, hidden, classes, rows a batch, heads)
SHAPES = ((128, 32, 10, 32, 64), (512, 64, 10, 64, 64), (512, 128, 10, 128, 64), (2048, 512, 100, 256, 16))
#: What a plain loop is to be beaten by, in the order of SHAPES.
GOALS = {"SGD": (11.0, 5.0, 2.0, 0.95), "AdamW": (9.0, 4.0, 2.0, 0.95)}
RATES = tuple(10 ** (-2 - place / 4) for place in range(8))
LOOP_S = 0.3  # what one measurement takes


def run(
    *, shapes: Sequence[tuple[int, int, int, int, int]] = SHAPES, repeats: int = 7, loop_s: float = LOOP_S
) -> Report:
    """Measure every shape with each optimiser; nothing but this process is needed."""
    lines = [
        _compare(shape, optimizer, goal, repeats, loop_s)
        for optimizer, goals in GOALS.items()
        for shape, goal in zip(shapes, goals, strict=False)
    ]
    header = (
        "heads, shape, optimiser",
        "plain ms",
        "alone ms",
        "sweep ms",
        "plain / sweep",
        "goal",
        "alone / sweep",
        "units",
    )
    return Report(
        theme="grouped_heads",
        question="One optimiser step of every head on one batch: loss, gradients, update, and in ours the check for "
        "divergence and the running metrics. `plain` is a loop over `nn.Sequential`s with torch's optimisers as they "
        "come; `alone` is our trainer, one head after the other; `sweep` is what `featurectl sweep` does. Eight "
        "learning rates among the heads.",
        tables=[Table(header, lines)],
        remarks=["Times are medians over the repeats; the factors have the smallest and the largest behind them."],
        versions=package_versions("torch"),
    )


def _compare(
    shape: tuple[int, int, int, int, int], optimizer: str, goal: float, repeats: int, loop_s: float
) -> tuple[str, ...]:
    features, hidden, classes, rows, heads = shape
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(rows, features, generator=generator), torch.randint(0, classes, (rows,), generator=generator)
    alone = _trainers(shape, optimizer)
    units = form_units(_trainers(shape, optimizer), rows)
    runs = in_turn(
        {
            "plain": _rate(_plain(shape, optimizer, *batch), loop_s),
            "alone": _rate(partial(_step_each, alone, *batch), loop_s),
            "sweep": _rate(partial(_step_units, units, *batch), loop_s),
        },
        repeats,
    )
    against = ratio(runs, "sweep", "plain")
    grouped = sum(len(unit.trainers) for unit in units if isinstance(unit, Group))
    return (
        f"{heads} x {features}-{hidden}-{classes}, batch {rows}, {optimizer}",
        *(f"{1e3 / rate(runs, name):.2f}" for name in ("plain", "alone", "sweep")),
        str(against),
        against.against(goal),
        str(ratio(runs, "sweep", "alone")),
        f"{grouped} grouped" if grouped else "one by one",
    )


def _trainers(shape: tuple[int, int, int, int, int], optimizer: str) -> list[Trainer]:
    features, hidden, classes, rows, heads = shape
    return [
        build_trainer(
            TrainConfig(
                name=f"h{head}", stream="bench", taps="avgpool", head_args={"hidden": hidden}, batch_size=rows,
                optimizer=optimizer, optimizer_args={"lr": RATES[head % len(RATES)]}, seed=head, device="cpu",
            ),
            in_features=features, outputs=classes,
        )
        for head in range(heads)
    ]  # fmt: skip


def _plain(
    shape: tuple[int, int, int, int, int], optimizer: str, batch: torch.Tensor, classes_B: torch.Tensor
) -> Callable[[], None]:
    features, hidden, classes, _, count = shape
    heads = [
        nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)) for _ in range(count)
    ]  # fmt: skip
    kind = getattr(torch.optim, optimizer)
    optimizers = [kind(head.parameters(), lr=RATES[place % len(RATES)]) for place, head in enumerate(heads)]

    def step() -> None:
        for head, own in zip(heads, optimizers, strict=True):
            own.zero_grad()
            nn.functional.cross_entropy(head(batch), classes_B).backward()
            own.step()

    return step


def _step_each(trainers: Sequence[Trainer], features: torch.Tensor, labels: torch.Tensor) -> None:
    once = Once()
    for trainer in trainers:
        trainer.step(features, labels, once=once)


def _step_units(units: Sequence[Unit], features: torch.Tensor, labels: torch.Tensor) -> None:
    once = Once()
    for unit in units:
        unit.step(features, labels, place="", once=once)


def _rate(work: Callable[[], object], loop_s: float) -> Callable[[], Run]:
    """Return a measurement of how often in a second ``work`` can be done."""
    work()  # the first one sets up what every other finds
    began = time.perf_counter()
    work()
    loops = max(1, int(loop_s / max(time.perf_counter() - began, 1e-6)))

    def measure() -> Run:
        clock = Clock()
        for _ in range(loops):
            work()
        return clock.stop(loops)

    return measure
