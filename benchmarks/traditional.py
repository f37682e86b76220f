"""The run that everybody writes first: every epoch decodes, augments and goes through the frozen backbone again.

``python -m benchmarks.traditional IMAGES.csv``: plain torch and torchvision, one head, one experiment.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from featurectl.samples import augment
from featurestream_producer.devices import loader_workers

CLASSES = 10


class Images(Dataset[tuple[Tensor, int]]):
    """The images of a table with the columns path and label, augmented anew each time."""

    def __init__(self, table: Path) -> None:
        self._folder = table.parent
        with table.open(encoding="utf-8", newline="") as file:
            self._rows = [(row["path"], int(row["label"])) for row in csv.DictReader(file)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self._rows[index]
        with Image.open(self._folder / path) as image:
            return augment(image.convert("RGB")), label


def main() -> None:
    """Train one head."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traditional", description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18(weights=None)
    width = backbone.fc.in_features
    backbone.fc = nn.Identity()
    backbone.eval()
    head = nn.Sequential(nn.Linear(width, options.hidden), nn.ReLU(), nn.Linear(options.hidden, CLASSES))
    optimizer = torch.optim.AdamW(head.parameters())
    # As many processes as the producer has where nobody says.
    workers = loader_workers("cpu", 1, torch.multiprocessing.cpu_count())
    loader = DataLoader(Images(options.table), options.batch_size, shuffle=True, num_workers=workers)
    for epoch in range(options.epochs):
        total = 0.0
        for images_BCHW, classes_B in loader:
            with torch.inference_mode():
                features_BD = backbone(images_BCHW)
            loss = nn.functional.cross_entropy(head(features_BD.clone()), classes_B)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(classes_B)
        print(f"epoch {epoch}: loss {total / len(loader.dataset):.4f}", flush=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
