"""The OpenAPI document describes what is there, and no request that can be made from it ends in an error of ours."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.gateway.api_check import LIVE, serving_toy
from tests.gateway.serving import Served
from tests.project.documents import ROOT

EXAMPLES = 12  # of each operation
PATHS = (
    "/v1/streams", "/v1/streams/{stream}", "/v1/streams/{stream}/manifest", "/v1/streams/{stream}/passes",
    "/v1/streams/{stream}/taps", "/v1/streams/{stream}/health", "/v1/streams/{stream}/picture",
    "/v1/streams/{stream}/requests", "/v1/streams/{stream}/records", "/v1/streams/{stream}/live", "/v1/live",
    "/v1/lanes", "/v1/streams/{stream}/lanes", "/v1/streams/{stream}/lanes/{tap}/{lane}/record",
    "/v1/streams/{stream}/lanes/{tap}/{lane}/records",
    "/v1/experiments", "/v1/experiments/{name}", "/v1/experiments/{name}/metrics", "/v1/compare", "/data", "/after",
    "/healthz", "/readyz", "/metrics",
)  # fmt: skip

PLACES = ["earliest", "latest", "batch:2", "pass:1", "offset:1", "position:1:2", "-1h", "0", "2020-01-01T00:00Z"]
#: What makes sense here, and would hardly be drawn.
SENSIBLE: dict[str, dict[str, list[Any]]] = {
    "/v1/streams/{stream}/records": {
        "from": PLACES, "until": PLACES, "n": [1, 7, 100_001], "taps": [["avgpool"], ["layer3,avgpool"]],
        "cursor": [None], "wait": [0],
    },
    "/data": {"stream": ["toy"], "taps": [["avgpool"]], "cursor": [None], "n": [1], "compat": [False]},
    "/after": {
        "stream": ["toy"], "taps": [["avgpool"]], "cursor": [None], "timestamp": [0, 1e9, 4e9], "n": [None],
        "format": [None],
    },
    "/v1/compare": {"stream": ["toy"]},
}  # fmt: skip

#: Status codes by operation, for the summary.
seen: dict[str, collections.Counter[int]] = {}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A gateway on a log with one stream; pictures and comparisons are ready-made."""
    with serving_toy() as found:
        yield found


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    """The document as the gateway serves it."""
    found: dict[str, Any] = served.json("/openapi.json")
    return found


def test_the_document_has_every_path(document: dict[str, Any]) -> None:
    assert sorted(document["paths"]) == sorted(PATHS)
    assert document["openapi"].startswith("3.1")


def test_the_page_about_the_api_names_every_path() -> None:
    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    assert [path for path in PATHS if path not in page] == []


def test_every_parameter_is_explained(document: dict[str, Any]) -> None:
    parameters = [
        (path, parameter["name"], parameter.get("description", ""))
        for path, operations in document["paths"].items()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
    ]
    assert len(parameters) > 40
    assert [one for one in parameters if len(one[2]) < 10] == []


def test_the_page_about_the_api_names_every_kind_of_problem() -> None:
    from featurestream_gateway.problems import KINDS

    page = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if kind != "internal" and f"`{kind}`" not in page] == []


@pytest.mark.parametrize("path", [path for path in PATHS if path not in LIVE])
def test_no_request_ends_in_an_error_of_ours(served: Served, document: dict[str, Any], path: str) -> None:
    """Requests that are right by the document, and wrong ones; to the stream that there is, and to others."""
    method = "POST" if path.endswith("/requests") else "GET"
    operation = schemathesis.openapi.from_dict(document)[path][method]
    counts = seen.setdefault(f"{method} {path}", collections.Counter())

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation, path))
    def ask(case: schemathesis.Case) -> None:
        response = case.call(base_url=served.url)
        counts[response.status_code] += 1
        case.validate_response(
            response,
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ],
        )

    ask()


@pytest.mark.parametrize("path", LIVE)
def test_no_live_connection_begins_with_an_error_of_ours(served: Served, document: dict[str, Any], path: str) -> None:
    operation = schemathesis.openapi.from_dict(document)[path]["GET"]
    counts = seen.setdefault(f"GET {path}", collections.Counter())

    @seed(0)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation, path))
    def ask(case: schemathesis.Case) -> None:
        sent = case.as_transport_kwargs(base_url=served.url)
        headers = {name: str(value) for name, value in (sent.get("headers") or {}).items()}
        with served.client.stream("GET", sent["url"], params=sent.get("params"), headers=headers) as answer:
            counts[answer.status_code] += 1
            assert answer.status_code < 500

    try:
        ask()
    except httpx.LocalProtocolError as error:  # the document allows any text in Last-Event-ID, and no client sends it
        pytest.fail(str(error))


def test_the_summary_of_the_requests_above(served: Served) -> None:
    total: collections.Counter[int] = sum(seen.values(), collections.Counter())
    print(f"\nschemathesis {schemathesis.SCHEMATHESIS_VERSION}: {total.total()} requests, {len(seen)} operations")
    for operation, counts in seen.items():
        print(f"  {operation:<45} " + ", ".join(f"{status}: {count}" for status, count in sorted(counts.items())))
    assert not [status for status in total if status >= 500]
    assert total[200] > 30
    assert total[422] > 50
    assert total[404] > 10
    jsonschema.Draft202012Validator.check_schema(served.json("/openapi.json")["components"]["schemas"]["Rows"])


def cases(operation: Any, path: str) -> st.SearchStrategy[schemathesis.Case]:
    """Return requests of an operation: to what there is and to what there is not, right and wrong ones."""
    modes = schemathesis.GenerationMode
    known = {"stream": "toy"} if "{stream}" in path else {"name": "E1"} if "{name}" in path else None
    strategies = [operation.as_strategy(modes.POSITIVE)]
    if operation.query or operation.path_parameters or operation.body:
        strategies.append(operation.as_strategy(modes.NEGATIVE))
    if known is not None:
        strategies.append(operation.as_strategy(modes.POSITIVE, path_parameters=known))
    sensible = SENSIBLE.get(path)
    if sensible is not None:
        queries = st.fixed_dictionaries({}, optional={name: st.sampled_from(sensible[name]) for name in sensible})
        strategies.append(
            queries.flatmap(lambda query: operation.as_strategy(modes.POSITIVE, path_parameters=known, query=query))
        )
    return st.one_of(strategies)
