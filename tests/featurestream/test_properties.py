"""featurestream.properties: a client.properties means here what it means to Kafka's own tools."""

from __future__ import annotations

import pytest

from featurestream.errors import UsageError
from featurestream.properties import parse_properties


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("security.protocol=SASL_SSL", {"security.protocol": "SASL_SSL"}),
        ("a = 1\nb:2\nc 3\nd\t=\t4", {"a": "1", "b": "2", "c": "3", "d": "4"}),
        ("# a comment\n  ! another\n\n   \na=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}),
        ("a=x=y:z w", {"a": "x=y:z w"}),
        ("a=trailing blanks stay  ", {"a": "trailing blanks stay  "}),
        ("a=one,\\\n    two,\\\n    three\nb=4", {"a": "one,two,three", "b": "4"}),
        ("a=one\\\n# no comment inside a continued line", {"a": "one# no comment inside a continued line"}),
        ("a=ends with a backslash \\\\\nb=2", {"a": "ends with a backslash \\", "b": "2"}),
        ("a\\=b\\:c\\ d=e", {"a=b:c d": "e"}),
        ("a=\\u00e9\\t\\q\\\\", {"a": "é\tq\\"}),
        ("a\nb=", {"a": "", "b": ""}),
        ("a=1\na=2", {"a": "2"}),
        ("a=unfinished\\", {"a": "unfinished"}),
        ("", {}),
    ],
)
def test_text_is_read_as_java_reads_it(text: str, expected: dict[str, str]) -> None:
    assert parse_properties(text) == expected


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\uzzzz", "a=\\u"])
def test_a_broken_unicode_escape_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="hexadecimal"):
        parse_properties(text)
