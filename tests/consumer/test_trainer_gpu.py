"""What only a GPU can show of the trainer: its own random state there, and a resume on the same device."""

from __future__ import annotations

import io

import pytest
import torch

from featurestream_consumer.build import build_trainer
from featurestream_consumer.config import TrainConfig
from featurestream_consumer.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def trainer() -> Trainer:
    config = TrainConfig(
        name="a", stream="s", taps="t", device="cuda", optimizer="AdamW", head_args={"hidden": 16, "dropout": 0.5}
    )
    return build_trainer(config, in_features=6, outputs=3)


def test_a_trainer_on_a_gpu_goes_on_with_the_dropout_that_it_would_have_had() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randn(8, 6, generator=generator).half(), torch.arange(8) % 3) for _ in range(20)]
    whole, first, second = trainer(), trainer(), trainer()
    losses = [whole.step(*batch) for batch in rows]
    for batch in rows[:10]:
        first.step(*batch)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    torch.rand(5, device="cuda")
    second.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), map_location="cpu", weights_only=True))
    assert [second.step(*batch) for batch in rows[10:]] == pytest.approx(losses[10:], rel=1e-5)


def test_a_trainer_leaves_the_gpus_own_random_state_alone() -> None:
    before = torch.cuda.get_rng_state()
    one = trainer()
    one.step(torch.randn(8, 6), torch.arange(8) % 3)
    one.evaluate([(torch.randn(8, 6), torch.arange(8) % 3, torch.arange(8))])
    assert torch.equal(torch.cuda.get_rng_state(), before)
