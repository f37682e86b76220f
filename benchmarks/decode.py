"""Images a second that one core decodes, by decoder: a photograph of 500 x 375 pixels."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import Clock, Run, in_turn, rate, ratio
from benchmarks.report import Report, Table, package_versions
from featurestream_producer.datasets.decoders import JPEG_DECODERS, PILLOW
from featurestream_producer.datasets.image import read_image

SIZE = (500, 375)
QUALITIES = (75, 90)


def run(*, loops: int = 60, repeats: int = 7) -> Report:
    """Measure every decoder that is installed, on JPEG files of each of ``QUALITIES`` and on a PNG file."""
    decoders = [PILLOW, *(name for name in JPEG_DECODERS if find_spec(name) is not None)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lines: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        photographs = [Image.fromarray(pixels).resize(SIZE) for pixels in load_sample_images().images]
        for quality in QUALITIES:
            places = [Path(folder, f"{number}-{quality}.jpg") for number in range(len(photographs))]
            for place, photograph in zip(places, photographs, strict=True):
                photograph.save(place, quality=quality)
            lines += _compare(f"JPEG, quality {quality}", places, decoders, loops, repeats)
        places = [Path(folder, f"{number}.png") for number in range(len(photographs))]
        for place, photograph in zip(places, photographs, strict=True):
            photograph.save(place)
        lines += _compare("PNG", places, [PILLOW], loops, repeats)
    torch.set_num_threads(threads)
    return Report(
        theme="decode",
        question=f"Files of photographs of {SIZE[0]} x {SIZE[1]} pixels, read, decoded and turned upright by one "
        "thread: from the page cache to an RGB image.",
        tables=[Table(("files", "decoder", "img/s a core", "/ Pillow", "greatest difference from Pillow"), lines)],
        remarks=[f"Medians of {repeats} repeats in turn; differences in steps of 255 over all pixels."],
        versions=package_versions(*decoders),
    )


def _compare(title: str, places: list[Path], decoders: list[str], loops: int, repeats: int) -> list[tuple[str, ...]]:
    def decode_all(decoder: str) -> Run:
        clock = Clock()
        for _ in range(loops):
            for place in places:
                read_image(place, decoder)
        return clock.stop(loops * len(places))

    runs = in_turn({decoder: lambda decoder=decoder: decode_all(decoder) for decoder in decoders}, repeats)
    return [
        (
            title,
            decoder,
            f"{rate(runs, decoder):,.0f}",
            str(ratio(runs, decoder, PILLOW)),
            str(max(_difference(place, decoder) for place in places)),
        )
        for decoder in decoders
    ]


def _difference(place: Path, decoder: str) -> int:
    ours, theirs = (np.asarray(read_image(place, name)).astype(int) for name in (decoder, PILLOW))
    return int(np.abs(ours - theirs).max())
