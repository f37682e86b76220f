"""What the documents show is there, and runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from featurectl.app import app
from tests.project.conftest import Composed
from tests.project.documents import ROOT, Command, commands_in, fenced, markdown_files

ROOT_COMMAND: Any = typer.main.get_command(app)
COMMANDS = [
    command for path in markdown_files() for command in commands_in(path.name, path.read_text(encoding="utf-8"))
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def check_exists(command: Command) -> None:
    """Raise AssertionError unless the app has this command, and it has the options that are shown."""
    found: Any = ROOT_COMMAND
    words = list(command.words)
    while hasattr(found, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in found.commands, f"{command}: there is no {name}"
        found = found.commands[name]
    options = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.partition("=")[0] in {*options, "--help"}, f"{command}: there is no {word}"


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_in_a_document_exists_with_its_options(command: Command) -> None:
    check_exists(command)


@pytest.mark.parametrize("words", [("trian", "demo-train"), ("train", "demo-train", "--epoch", "3"), ("broker", "go")])
def test_a_command_that_does_not_exist_is_found_out(words: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError, match="there is no"):
        check_exists(Command("here", words))


def test_a_command_in_a_message_or_docstring_of_ours_exists() -> None:
    """ "What to do next" must be possible."""
    named = re.compile(r"(?<!from )\bfeaturectl (?!import )([a-z]+)(?: (up|down|status|logs)\b)?")
    for part in ("featurestream", "featurectl", "producer", "consumer", "gateway"):
        for path in (ROOT / part).rglob("*.py"):
            for words in named.findall(path.read_text(encoding="utf-8")):
                check_exists(Command(path.name, tuple(word for word in words if word)))


@pytest.mark.parametrize("name", sorted(ROOT_COMMAND.commands))
def test_each_command_stands_in_the_readme_and_explains_itself(name: str) -> None:
    assert f"featurectl {name}" in README
    assert ROOT_COMMAND.commands[name].help


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_to_a_file_leads_to_one(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_each_decision_stands_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs" / "adr").glob("*.md") if f"adr/{path.name}" not in index] == []


def test_the_readme_shows_what_its_commands_print() -> None:
    assert "@@" not in README
    assert all(len(block.splitlines()) > 1 for block in fenced(README, "console"))


def test_the_readme_has_an_example_of_about_ten_lines() -> None:
    (example,) = fenced(README, "python")
    assert 8 <= len(example.splitlines()) <= 14


@pytest.mark.broker
@pytest.mark.timeout(900)
@pytest.mark.parametrize("example", fenced(README, "python"))
def test_the_readmes_python_runs_as_it_stands(composed: Composed, example: str) -> None:
    """On the stream of the demo, which is that of docker-compose.yml too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=composed.folder, env=composed.environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("batch 0")
    assert "pass 1" in last
