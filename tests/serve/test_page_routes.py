"""How the page's files are sent."""

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from serve.page_routes import FOLDER, PUBLIC_PATHS, routes


@pytest.fixture(scope="module")
def client() -> TestClient:
    """A client of the page's routes."""
    return TestClient(Starlette(routes=routes))


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_every_file_comes_with_its_type_and_the_policy(client: TestClient, path: str):
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.headers["Content-Type"].startswith(kinds.get(path.rpartition(".")[2], "text/html"))


def test_a_known_file_is_not_sent_again(client: TestClient):
    first = client.get("/page/main.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/page/main.js", headers={"If-None-Match": f'"other", W/{first.headers["ETag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../page_routes.py", "/page/%2e%2e/page_routes.py", "/page/index.html", "/page"]
)
def test_nothing_else_is_sent(client: TestClient, path: str):
    answer = client.get(path)
    assert answer.status_code == 404


def test_every_file_that_is_named_exists():
    named = set()
    for path in FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        found = (
            re.findall(r'(?:href|src)="page/([^"]+)"', text)
            if path.suffix == ".html"
            else re.findall(r'from "\./([^"]+)"', text)
        )
        named |= set(found)
    assert named <= {path.name for path in FOLDER.iterdir()}
    assert {path.name for path in FOLDER.iterdir()} - named == {"index.html"}


def test_the_page_names_no_other_host_and_has_nothing_inline():
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]* src=)", page)
    for path in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text(encoding="utf-8")
        ), path
    assert all(Path(path).suffix in {"", ".js", ".css", ".svg"} for path in PUBLIC_PATHS)
