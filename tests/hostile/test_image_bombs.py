"""A small file that claims a huge image is a bad image, for every decoder, before memory is taken."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from featurestream.errors import DataError
from featurestream_producer.datasets.decoders import JPEG_DECODERS, PILLOW
from featurestream_producer.datasets.image import read_image

SIDE = 60_000
DECODERS = (PILLOW, *JPEG_DECODERS)


def png_bomb() -> bytes:
    """60,000 x 60,000 black pixels in 10 MB would be an honest bomb; a reader that looks at the header needs less."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(3 * SIDE + 1) * 20, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    saved = io.BytesIO()
    Image.new("RGB", (16, 16)).save(saved, "JPEG")
    data = bytearray(saved.getvalue())
    frame = data.index(b"\xff\xc0")  # SOF0: length, precision, height, width
    data[frame + 5 : frame + 9] = struct.pack(">HH", SIDE, SIDE)
    return bytes(data)


def bmp_bomb() -> bytes:
    information = struct.pack("<IiiHHIIiiII", 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + information + bytes(46)


def tiff_bomb() -> bytes:
    tags = [(256, 4, SIDE), (257, 4, SIDE), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, SIDE), (279, 4, 4)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\x00" + struct.pack("<I", 12) + bytes(4) + struct.pack("<H", len(tags)) + entries + bytes(4)


def webp_bomb() -> bytes:
    side = 16_383  # the most that the format can say: 268 million pixels
    frame = b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", side, side) + bytes(40)
    frame = b"\x10" + frame[1:]
    return b"RIFF" + struct.pack("<I", 12 + len(frame)) + b"WEBPVP8 " + struct.pack("<I", len(frame)) + frame


BOMBS = {
    "bomb.png": png_bomb(), "bomb.jpg": jpeg_bomb(), "bomb.bmp": bmp_bomb(), "bomb.tif": tiff_bomb(),
    "bomb.webp": webp_bomb(), "bomb.ppm": b"P6\n%d %d\n255\n" % (SIDE, SIDE) + bytes(64),
    "bomb.pgm": b"P5\n%d %d\n65535\n" % (SIDE, SIDE) + bytes(64),
    # A JPEG by its bytes and not by its name is decoded as what it is.
    "jpeg.png": jpeg_bomb(),
}  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_a_bad_image_that_names_its_file(tmp_path: Path, name: str, decoder: str) -> None:
    (tmp_path / name).write_bytes(BOMBS[name])
    with pytest.raises(DataError, match=name) as caught:
        read_image(tmp_path / name, decoder)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BOMBS)
def test_it_is_the_size_that_is_refused(tmp_path: Path, name: str) -> None:
    """And not another damage: these files would decode, or fail later."""
    (tmp_path / name).write_bytes(BOMBS[name])
    with pytest.raises(DataError, match="DecompressionBombError"):
        read_image(tmp_path / name)


MEASURE = """
import resource, sys
from pathlib import Path
from featurestream.errors import DataError
from featurestream_producer.datasets.image import read_image
from tests.hostile.test_image_bombs import DECODERS, BOMBS
folder = Path(sys.argv[1])
def look(name, decoder):
    try:
        read_image(folder / name, decoder)
    except DataError:
        return
    raise SystemExit(f"{name} was decoded by {decoder}")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in BOMBS:
    (folder / name).write_bytes(BOMBS[name])
    for decoder in DECODERS:
        look(name, decoder)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_the_bombs_take_no_memory(tmp_path: Path) -> None:
    """One of them decoded would take 10 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 100_000, "kilobytes"
