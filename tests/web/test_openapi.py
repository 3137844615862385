"""The OpenAPI document: valid, complete, and the same as the file that clients are generated from."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.web.openapi import ENUMS, TAGS
from service.web.problems import CODES, PROBLEM_TYPE
from tests.conftest import ROOT

METHODS = {"get", "post", "delete", "put", "patch"}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = client.get("/openapi.json").json()
    return answer


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document."""
    if isinstance(node, dict):
        yield node
    for item in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(item)


def test_it_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_the_file_holds_what_is_served(document: dict[str, Any]) -> None:
    text = (ROOT / "deploy" / "openapi.json").read_text("utf-8")
    assert json.loads(text) == document, "make openapi writes it anew"


def test_every_operation_has_a_name_a_summary_and_a_tag_that_says_what_it_is(
    document: dict[str, Any],
) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in ids)
    assert all(operation["summary"] for operation in operations(document))
    told = {tag["name"] for tag in TAGS if tag["description"]}
    assert {tag for operation in operations(document) for tag in operation["tags"]} == told


def test_every_parameter_and_every_member_says_what_it_is(document: dict[str, Any]) -> None:
    silent = [
        p["name"] for o in operations(document) for p in o.get("parameters", ()) if not p.get("description")
    ]
    for name, schema in document["components"]["schemas"].items():
        silent += [f"{name}.{n}" for n, p in schema.get("properties", {}).items() if "description" not in p]
    assert silent == []


def test_an_enumeration_stands_once_under_its_name(document: dict[str, Any]) -> None:
    listed = [tuple(node["enum"]) for node in nodes(document) if isinstance(node.get("enum"), list)]
    assert len(listed) == len(set(listed)) == len(ENUMS) + 1


def test_no_component_is_left_over(document: dict[str, Any]) -> None:
    asked = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    kinds = ("schemas", "headers")
    assert asked == {f"#/components/{k}/{name}" for k in kinds for name in document["components"][k]}


def test_every_refusal_is_the_problem_with_all_its_codes(document: dict[str, Any]) -> None:
    for operation in operations(document):
        for status, response in operation["responses"].items():
            assert (PROBLEM_TYPE in response.get("content", {})) == (int(status) >= 400), operation
    problem = document["components"]["schemas"]["Problem"]
    assert problem["properties"]["code"]["allOf"] == [{"$ref": "#/components/schemas/ProblemCode"}]
    assert document["components"]["schemas"]["ProblemCode"]["enum"] == list(CODES)


def test_every_answer_tells_its_request_id_and_who_is_full_when_to_come_again(
    document: dict[str, Any],
) -> None:
    for operation in operations(document):
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"]
            assert ("Retry-After" in response["headers"]) == (status in ("429", "503"))


def test_bytes_are_told_as_generators_look_for_them(document: dict[str, Any]) -> None:
    textual = re.compile(r"application/(.*\+)?json|text/plain|.*openmetrics-text|multipart/form-data")
    for operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media_type, told in ((m, t) for body in bodies for m, t in body.get("content", {}).items()):
            if not textual.fullmatch(media_type):
                assert told["schema"] == {"type": "string", "format": "binary"}
    assert "contentMediaType" not in json.dumps(document)


def test_a_key_may_be_needed_and_is_a_bearers(document: dict[str, Any]) -> None:
    assert document["security"] == [{}, {"bearerAuth": []}]
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"


def test_the_images_of_the_example_can_be_sent_as_they_are(
    document: dict[str, Any], client: httpx.Client
) -> None:
    images = document["components"]["schemas"]["FeaturesBody"]["properties"]["images"]["examples"][0]
    assert client.post("/v1/models/small/features", json={"images": images}).status_code == 200
