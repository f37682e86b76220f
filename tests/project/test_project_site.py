"""The documentation builds as a site, strictly, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from featurectl.app import app
from tests.project.documents import ROOT

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the group docs is not installed"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def article(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return text[text.index("<article") : text.index("</article>")]


def test_every_document_is_a_page_that_the_contents_name(site: Path) -> None:
    contents = (site / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        if path.name != "README.md":
            assert f'href="{path.stem}.html"' in contents, path.name
    for name in ("overview", "glossary", "schemas", "changelog"):
        assert (site / f"{name}.html").is_file()
    assert not (site / "_site").exists(), "what builds the site is no part of it"


def test_the_reference_has_every_command_with_its_options_and_the_librarys_docstrings(site: Path) -> None:
    commands = article(site / "reference" / "commands.html")
    root = typer.main.get_command(app)
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        assert f"featurectl {name}" in commands
        for parameter in getattr(command, "params", ()):
            assert all(option in commands for option in parameter.opts if option.startswith("--")), parameter.opts
    experiments = article(site / "reference" / "featurestream.experiments.html")
    assert "read_experiments" in experiments
    assert "experiments by their labels" in experiments
    assert ":class:" not in article(site / "reference" / "featurestream.memory.html")


def test_links_between_documents_lead_somewhere_on_the_site(site: Path) -> None:
    """Strictly built, links within docs/ do; those that leave it are ours to turn."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', article(page)):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    assert 'href="glossary.html"' in article(site / "exactness.html")
    assert "tests/e2e/test_produce_kills.py" in article(site / "producing.html")


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', text)
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(https?:[^"]+)"', text)
        assert loaded == [], page.name
