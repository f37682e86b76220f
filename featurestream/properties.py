"""Java properties files: how Kafka's own tools are told about security, and so how we are."""

from __future__ import annotations

import re

from featurestream.errors import UsageError

_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


def parse_properties(text: str) -> dict[str, str]:
    """Return the keys and values of a ``client.properties``, by the rules of java.util.Properties.

    A key ends at the first ``=``, ``:`` or blank that no backslash protects; ``#`` and ``!`` start a comment line; a
    backslash at the end of a line continues it; ``\\uXXXX`` is a character. The last of two equal keys counts. Raises
    UsageError for a ``\\u`` without four hexadecimal digits.
    """
    found = {}
    for line in _logical_lines(text):
        key, value = re.fullmatch(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        found[_unescape(key)] = _unescape(value)
    return found


def _logical_lines(text: str) -> list[str]:
    lines: list[str] = []
    open_line = ""
    continues = False
    for raw in re.split(r"\r\n|\r|\n", text):
        line = raw.lstrip(" \t\f")
        if not continues and (not line or line[0] in "#!"):
            continue
        trailing = len(line) - len(line.rstrip("\\"))
        continues = trailing % 2 == 1
        open_line += line[:-1] if continues else line
        if not continues:
            lines.append(open_line)
            open_line = ""
    return [*lines, open_line] if open_line else lines


def _unescape(text: str) -> str:
    def character(found: re.Match[str]) -> str:
        escape = found[1]
        if escape[0] != "u":
            return _ESCAPES.get(escape, escape)
        if not re.fullmatch(r"u[0-9a-fA-F]{4}", escape):
            raise UsageError(
                f'properties: "\\{escape}" is no character',
                hint="four hexadecimal digits follow \\u; a backslash is \\\\",
            )
        return chr(int(escape[1:], 16))

    return re.sub(r"\\(u.{0,4}|.)", character, text, flags=re.DOTALL)
