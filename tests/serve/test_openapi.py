import json

from starlette.testclient import TestClient

from serve.app import create_app
from serve.routes import ENDPOINTS
from serve.state import ServerState


def document():
    return TestClient(create_app(ServerState())).get("/openapi.json").json()


def test_every_endpoint_is_described():
    found = {(path, method.upper()) for path, operations in document()["paths"].items() for method in operations}
    assert found == {(endpoint.path.replace(":path}", "}"), endpoint.method) for endpoint in ENDPOINTS}


def test_every_reference_leads_somewhere():
    described = document()
    names = set(described["components"]["schemas"])
    references = {part.split('"')[0] for part in json.dumps(described).split("#/components/schemas/")[1:]}
    assert references
    assert references <= names


def test_a_request_is_described_as_it_is_checked():
    chat = document()["components"]["schemas"]["ChatCompletionRequest"]
    assert chat["required"] == ["messages"]
    assert chat["properties"]["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 100}


def test_operations_have_names_of_their_own():
    names = [operation["operationId"] for path in document()["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
