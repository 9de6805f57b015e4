import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ganserve.api import native, openai, openinference
from ganserve.api.http import Request, Response, problem
from ganserve.api.openapi import document, openapi
from ganserve.api.routing import BENTOML_PATHS, HEALTH_PATHS, PROTOCOLS, ROUTES, protocol_of
from ganserve.errors import InvalidRequestError, NotAcceptableError, RequestError, UnauthorizedError
from ganserve.settings import Settings


@pytest.fixture(scope="module")
def described(context) -> dict[str, Any]:
    """The document of a conditional model."""
    return document(context)


def _operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method in methods.keys() & {"get", "put", "post", "delete", "options", "head", "patch", "trace"}:
            yield path, method, methods[method]


def _bodies(described: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """The forms of a route's JSON body."""
    content = described["paths"][path]["post"]["requestBody"]["content"]
    forms: list[dict[str, Any]] = content["application/json"]["schema"]["anyOf"]
    return forms


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    if isinstance(node, dict):
        yield node
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _nodes(child)


def _subclasses(kind: type[RequestError]) -> Iterator[type[RequestError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def test_every_route_is_described_and_nothing_else(described):
    """The document has each method of each route, BentoML's paths among them, and no other."""
    routes = {(template, method.lower()) for template, methods in ROUTES.items() for method in methods}
    bentoml = {(path, "get") for path in BENTOML_PATHS}
    assert {(path, method) for path, method, _ in _operations(described)} == routes | bentoml


def test_operations_are_complete(described):
    """Each operation has an identifier of its own, a summary, a tag that is listed, an answer, and its parameters."""
    tags = {tag["name"] for tag in described["tags"]}
    identifiers = []
    for path, method, operation in _operations(described):
        identifiers.append(operation["operationId"])
        assert operation["summary"]
        assert set(operation["tags"]) <= tags
        assert operation["responses"]["200"]["description"]
        parameters = [*described["paths"][path].get("parameters", ()), *operation.get("parameters", ())]
        in_path = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
        assert sorted(in_path) == sorted(re.findall(r"{(\w+)}", path)), (path, method)
    assert len(set(identifiers)) == len(identifiers)


def test_references_lead_somewhere(described):
    """Every $ref points at something in the document."""
    for node in _nodes(described):
        if "$ref" in node:
            target: Any = described
            for step in node["$ref"].removeprefix("#/").split("/"):
                target = target[step]
            assert target


def test_every_error_is_described_in_the_words_of_its_protocol(described):
    """Each status that a route can answer has a description whose shape is that of the route's protocol."""
    shapes = {problem: "Problem", openai.error: "OpenAIError", openinference.error: "InferenceError"}
    assert {protocol.error for protocol in PROTOCOLS} == set(shapes)
    found = set()
    for path, _, operation in _operations(described):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and path not in BENTOML_PATHS:
                assert answer["$ref"] == f"#/components/responses/{shapes[protocol_of(path).error]}{status}"
                found.add(int(status))
    assert found == {500} | {kind.status for kind in _subclasses(RequestError)} - {UnauthorizedError.status}


@pytest.mark.parametrize(
    ("tell", "name"), [(problem, "Problem"), (openai.error, "OpenAIError"), (openinference.error, "InferenceError")]
)
def test_error_schemas_are_what_is_told(described, tell, name):
    """An error's schema has the fields that its protocol's errors have."""
    answer: Response = tell(InvalidRequestError("why"))
    schema, told = described["components"]["schemas"][name], json.loads(answer.body)
    assert schema["properties"].keys() == told.keys() == set(schema["required"])
    (shown,) = described["components"]["responses"][f"{name}400"]["content"]
    assert shown == answer.content_type
    if isinstance(told.get("error"), dict):
        assert schema["properties"]["error"]["properties"].keys() == told["error"].keys()


def test_a_token_is_described_where_it_is_asked_for(context, described):
    """With a token set every operation but those of health needs it and can answer 401; without, none does."""
    secured = document(dataclasses.replace(context, settings=Settings(token="0123456789abcdef")))
    assert secured["security"] == [{"token": []}]
    assert secured["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    open_to_all = {path for path, _, operation in _operations(secured) if "401" not in operation["responses"]}
    assert open_to_all == HEALTH_PATHS
    for path, _, operation in _operations(secured):
        assert (operation.get("security") == []) == (path in HEALTH_PATHS)
    assert "security" not in described
    assert not any("401" in operation["responses"] for _, _, operation in _operations(described))


def test_ranges_are_those_that_validate(context):
    """Ranges in the document move with the settings, and are the constants of the code that checks."""
    small = dataclasses.replace(context, settings=Settings(max_request_rows=5))
    for described, rows in ((document(context), 1024), (document(small), 5)):
        seeded, labelled, latents = _bodies(described, "/v1/generate")
        assert seeded["properties"]["n"]["maximum"] == rows
        assert seeded["properties"]["seed"]["maximum"] == 2**64 - 1
        assert seeded["properties"]["truncation"]["maximum"] == native.MAX_TRUNCATION
        assert labelled["properties"]["labels"]["maxItems"] == rows
        assert labelled["properties"]["labels"]["items"]["maximum"] == 9
        assert latents["properties"]["latents"]["maxItems"] == rows
        row = latents["properties"]["latents"]["items"]
        assert (row["minItems"], row["maxItems"]) == (16, 16)
        assert _bodies(described, "/v1/interpolate")[0]["properties"]["steps"]["maximum"] == rows
        text = described["paths"]["/v1/digits/{text}.png"]["get"]["parameters"][0]
        assert text["schema"]["pattern"] == f"^[0123456789]{{1,{min(rows, native.MAX_DIGITS)}}}$"


def test_prompts_are_the_models(described):
    """The prompts of one class are the digits and their words."""
    one, row = _bodies(described, "/v1/images/generations")
    assert set(one["properties"]["prompt"]["enum"]) == {*"0123456789", *openai.WORDS}
    assert row["properties"]["prompt"]["pattern"] == "^[0123456789]{2,64}$"
    assert "448x448" in one["properties"]["size"]["enum"]


def test_a_model_without_labels_has_none_in_its_document(unconditional):
    """Nothing asks an unconditional model's clients for labels."""
    described = document(unconditional)
    for path in ("/v1/generate", "/v1/interpolate"):
        for body in _bodies(described, path):
            assert not {"label", "labels"} & set(body["required"])
    body = described["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert [tensor["title"] for tensor in body["properties"]["inputs"]["prefixItems"]] == ["latents"]


def test_it_is_served_as_json(context, described):
    """`GET /openapi.json` is the document, and strict about its query and `Accept` like any other route."""
    response = openapi(Request(method="GET", path="/openapi.json"), context)
    assert response.content_type == "application/json"
    assert json.loads(response.body) == described
    assert described["openapi"] == "3.1.0"
    with pytest.raises(InvalidRequestError, match="unknown query parameter 'x'"):
        openapi(Request(method="GET", path="/openapi.json", query="x=1"), context)
    with pytest.raises(NotAcceptableError):
        openapi(Request(method="GET", path="/openapi.json", headers={"accept": "text/yaml"}), context)
