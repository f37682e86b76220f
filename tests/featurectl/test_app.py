"""featurectl as a whole: its commands, what an error becomes, and how quickly it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from featurectl.app import app, run
from featurestream.errors import BrokerError, GoneError, InternalError, UsageError
from featurestream.logs import start_logging

COMMANDS = (
    "demo", "broker", "produce", "request", "layers", "streams", "peek", "picture", "train", "sweep", "fork", "probe",
    "compare", "gateway", "doctor",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "pandas", "numpy", "matplotlib", "confluent_kafka", "pydantic", "fastapi")


def end_of(error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Return the exit code of a program whose one command ends with ``error``."""
    program = typer.Typer(pretty_exceptions_enable=False)

    @program.command()
    def fail() -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["toy"])
    with pytest.raises(SystemExit) as end:
        run(program, "toy")
    return end.value.code


def test_help_lists_every_command_with_its_first_sentence() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        line = next(line for line in result.stdout.splitlines() if line.strip("│ ").startswith(command + " "))
        assert len(line.strip("│ ").removeprefix(command).strip()) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_both_spellings_of_help(command: str) -> None:
    long, short = CliRunner().invoke(app, [command, "--help"]), CliRunner().invoke(app, [command, "-h"])
    assert (long.exit_code, short.exit_code) == (0, 0)
    assert long.stdout == short.stdout
    assert f"Usage: root {command}" in long.stdout


def test_help_shows_every_text_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are markup to the help: what stands in them would be gone, so defaults are said in words."""
    monkeypatch.setenv("COLUMNS", "400")
    for path, command in commands_below(typer.main.get_command(app)):
        shown = " ".join(CliRunner().invoke(app, [*path, "--help"]).stdout.replace("│", " ").split())
        texts = [command.help, *(getattr(parameter, "help", None) for parameter in command.params)]
        for text in filter(None, texts):
            assert " ".join(text.split()) in shown, " ".join(path)


def commands_below(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_below(inner, (*path, name))


def test_help_loads_nothing_heavy() -> None:
    """What `featurectl --help` imports decides how soon it answers."""
    code = (
        "import sys\n"
        "from featurectl.app import app\n"
        "try:\n    app(['--help'])\n"
        "except SystemExit:\n    pass\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_version_is_printed_in_one_line() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("featurestream 0.")
    assert len(result.stdout.splitlines()) == 1


def test_an_unknown_command_is_the_callers_mistake_and_the_nearest_is_suggested() -> None:
    result = CliRunner().invoke(app, ["strems"])
    assert result.exit_code == 2
    assert "streams" in result.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "broker"])
def test_an_unknown_option_is_the_callers_mistake(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--no-such-option"])
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr


def test_without_a_command_help_is_shown() -> None:
    assert "demo" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("no", hint="do"), 2), (BrokerError("no", hint="do"), 3), (GoneError("no", hint="do"), 4)],
)
def test_an_expected_error_is_one_line_and_its_own_exit_code(error, code, monkeypatch, capsys) -> None:
    assert end_of(error, monkeypatch) == code
    printed = capsys.readouterr()
    assert printed.err == "error: no; do\n"
    assert printed.out == ""


def test_an_error_of_several_lines_is_printed_on_one(monkeypatch, capsys) -> None:
    end_of(UsageError("first\n  second", hint="third"), monkeypatch)
    assert capsys.readouterr().err == "error: first second; third\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError("a planted bug"), InternalError("a planted bug")])
def test_a_bug_of_ours_shows_its_traceback_and_asks_for_a_report(bug, monkeypatch, capsys) -> None:
    assert end_of(bug, monkeypatch) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2].endswith("a planted bug")
    assert lines[-1].startswith("this is a bug in featurestream 0.")


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no", hint="do", seen=3), 2), (InternalError("a bug"), 70), (KeyError("a bug"), 70)]
)
def test_where_lines_are_json_the_error_is_one_too_and_a_bug_has_its_traceback(
    error, code, monkeypatch, capsys
) -> None:
    start_logging("json", command="toy")
    try:
        assert end_of(error, monkeypatch) == code
    finally:
        start_logging("text")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["command"], told["error"], told["exit_code"]) == (
        "error",
        "toy",
        type(error).__name__,
        code,
    )
    assert ("exception" in told) == (code == 70)


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch, capsys) -> None:
    absent = ModuleNotFoundError("No module named 'torchvision'", name="torchvision.models")
    assert end_of(absent, monkeypatch) == 2
    assert capsys.readouterr().err == (
        "error: this command, which imports torchvision, needs a package that is not installed; "
        'pip install "featurestream[producer]"\n'
    )


def test_a_module_of_ours_that_is_not_there_is_our_bug(monkeypatch) -> None:
    assert end_of(ModuleNotFoundError("No module named 'x'", name="featurestream.x"), monkeypatch) == 70


def test_ctrl_c_ends_with_130(monkeypatch, capsys) -> None:
    assert end_of(KeyboardInterrupt(), monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_command_that_works_ends_with_0(monkeypatch) -> None:
    assert end_of(None, monkeypatch) == 0


def test_an_output_that_cannot_be_written_is_not_our_bug() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "featurectl", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot write the output: No space left on device; free some space")
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    """As `featurectl streams | head -1` does."""
    code = (
        "import typer\n"
        "from featurectl.app import run\n"
        "program = typer.Typer()\n"
        "@program.command()\n"
        "def talk() -> None:\n"
        "    input()\n"
        "    for number in range(100_000):\n"
        "        typer.echo(f'line {number}')\n"
        "run(program, 'toy')\n"
    )
    talker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert talker.stdin is not None
    assert talker.stdout is not None
    assert talker.stderr is not None
    talker.stdout.close()
    talker.stdin.write(b"\n")
    talker.stdin.close()
    errors = talker.stderr.read()
    talker.stderr.close()
    assert (talker.wait(), errors) == (141, b"")
