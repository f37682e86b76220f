"""What mkdocs does beside its own: pages from outside of docs/, the reference, and links that lead between them.

The documents are written to be read in the repository, where ``../GLOSSARY.md`` leads somewhere. On the site those
files are pages too; what is no page there, such as a test, is shown as text.
"""

from __future__ import annotations

import importlib
import pkgutil
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import typer
from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
#: Files of the repository that are pages of the site.
PAGES: Final = {
    "README.md": "overview.md",
    "GLOSSARY.md": "glossary.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "producer/README.md": "producer.md",
    "gateway/README.md": "gateway.md",
    "consumer/README.md": "consumer.md",
    "schemas/README.md": "schemas.md",
    "benchmarks/README.md": "benchmarks.md",
}
COMMANDS: Final = "reference/commands.md"
HOW_TO: Final = "How to"
LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
ROLE: Final = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?(?:[\w.]+\.)?(\w+)`")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the site's contents what is not named in mkdocs.yml: the reference, and pages that are new."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    for section in config.nav or []:
        if HOW_TO in section:
            section[HOW_TO] += sorted(
                path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in {*named, "README.md"}
            )
        if "Decisions" in section:
            section["Decisions"] = sorted(f"adr/{path.name}" for path in Path(config.docs_dir).glob("adr/*.md"))
        if "Reference" in section:
            section["Reference"].append({"Python": [f"reference/{name}.md" for name in modules()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of docs/."""
    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=commands_page()))
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Let links lead to pages of the site; those that lead elsewhere in the repository become their text."""
    uri = page.file.src_uri
    source = next((source for source, target in PAGES.items() if target == uri), f"docs/{uri}")
    known = {file.src_uri for file in files}

    def replaced(found: re.Match[str]) -> str:
        picture, text, link = found.groups()
        path, hash_, anchor = link.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return found[0]
        target = page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if target not in known:
            return text
        return f"{picture}[{text}]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}{hash_}{anchor})"

    return LINK.sub(replaced, markdown)


def page_of(path: str) -> str:
    """Return the page that a file of the repository is on the site, if it is one."""
    return PAGES.get(path, "README.md" if path == "docs" else path.removeprefix("docs/"))


def modules() -> list[str]:
    """Return the modules that user code imports: the library's, and the consumer's and producer's packages."""
    package = importlib.import_module("featurestream")
    names = [
        found.name for found in pkgutil.iter_modules(package.__path__, "featurestream.") if found.name[0] != "_"
    ]  # fmt: skip
    return ["featurestream", *sorted(names), "featurestream_consumer"]


def commands_page() -> str:
    """Return what every command's --help says, as Markdown."""
    from featurectl.app import app

    root: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "What `--help` says; `featurectl COMMAND --help` shows the same.", ""]
    for words, command in _walk(root, ("featurectl",)):
        lines += _section(words, command)
    return "\n".join(lines)


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from _walk(inner, (*words, name))
        else:
            yield (*words, name), inner


def _section(words: tuple[str, ...], command: Any) -> list[str]:
    context = command.context_class(command, info_name=" ".join(words))
    usage = command.get_usage(context).partition(":")[2].strip()
    lines = [f"## {' '.join(words)}", "", _cell(command.help or ""), "", "```text", usage, "```", ""]
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        metavar = parameter.metavar or ("" if getattr(parameter, "is_flag", False) else parameter.name.upper())
        names = ", ".join((*parameter.opts, *parameter.secondary_opts))
        name = f"{names} {metavar}".strip() if parameter.param_type_name == "option" else metavar
        default = parameter.default
        shown = f"`{default}`" if isinstance(default, (str, int, float, Path)) and default not in ("", False) else ""
        rows.append(f"| `{name}` | {_cell(getattr(parameter, 'help', None) or '')} | {shown} |")
    return [*lines, "| | | default |", "|---|---|---|", *rows, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


class Roles(Extension):
    """Shows the roles of our docstrings as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Replace them in an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
