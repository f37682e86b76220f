"""Take the pictures of docs/page.md from a gateway: ``python -m tests.gateway.page_screenshots URL [FOLDER]``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tests.gateway.browsing import chromium, opened

VIEWS: Final[dict[str, dict[str, Any]]] = {
    "page-light": {"color_scheme": "light"},
    "page-dark": {"color_scheme": "dark"},
    "page-phone": {
        "color_scheme": "light", "viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True
    },
}  # fmt: skip


def main(url: str, folder: Path) -> None:
    """Write a PNG a view, of the whole page, once its curves, comparison and rows are there."""
    with chromium() as browser:
        for name, settings in VIEWS.items():
            with opened(browser, url, **settings) as page:
                for part in (
                    ".card data.big[value]:not([value=''])",
                    "#curves canvas",
                    "#comparison [data-run]",
                    "#health tbody",
                    "#rows [data-row]",
                ):
                    page.locator(part).first.wait_for()
                png = page.screenshot(full_page=True)
            # A page has few colours: a palette makes a quarter of the file.
            Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "docs"))
