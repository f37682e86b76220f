"""The page's files as the gateway serves them: all of its own, with nothing that could run what data says."""

from __future__ import annotations

import hashlib
import re

import pytest

from featurestream_gateway.page_paths import FOLDER, page_files
from featurestream_gateway.settings import Token
from tests.gateway.serving import Served, problem_in, serving

#: What is not ours, as it was released: uPlot 1.6.32.
VENDORED = {
    "uplot/uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    "uplot/uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uplot/LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
OURS = sorted(name for name in page_files() if name.endswith(".js") and name not in VENDORED)


def test_the_first_file_is_html_that_runs_files_of_the_gateway_alone(served: Served) -> None:
    answer = served.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:|https?://", answer.text) == []
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', answer.text):
        assert served.get(path).status_code == 200, path


@pytest.mark.parametrize("name", sorted(page_files()))
def test_each_file_is_served_with_its_type_and_again_only_where_it_has_changed(served: Served, name: str) -> None:
    answer = served.get(f"/page/{name}")
    assert answer.content == (FOLDER / name).read_bytes()
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.headers["content-type"].partition(";")[0] == kind.get(name.rpartition(".")[2], "text/plain")
    assert "content-security-policy" in answer.headers
    again = served.get(f"/page/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/uplot", "/page//main.js"]
)
def test_no_other_file_is_served(served: Served, path: str) -> None:
    assert problem_in(served.get(path))["status"] == 404


@pytest.mark.parametrize("name", OURS)
def test_no_module_of_ours_makes_html_or_code_of_a_text_and_each_import_is_a_file(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    forbidden = r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function|localStorage|cookie)\b"
    assert re.findall(forbidden, text) == []
    for imported in re.findall(r'from "\./([^"]+)"', text):
        assert imported in page_files()
    assert 'from "' not in re.sub(r'from "\./', "", text)


@pytest.mark.parametrize("name", VENDORED)
def test_what_is_not_ours_is_as_it_was_released(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == VENDORED[name]


def test_the_files_need_no_token_and_everything_that_they_ask_for_does() -> None:
    from featurestream.memory import MemoryLog

    with serving(MemoryLog(), token=Token("a-secret-of-30-characters-long")) as served:
        assert [served.get(path).status_code for path in ("/", "/page/main.js")] == [200, 200]
        assert served.get("/v1/live").status_code == 401
