"""The example of docs/serving.md runs as it is printed there."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

pytestmark = pytest.mark.demo

DOCUMENT = Path(__file__).parents[3] / "docs" / "serving.md"
MARK = "<!-- openai example -->\n```python\n"


def test_the_openai_example(server):
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count(MARK) == 1
    source = text.split(MARK)[1].split("```")[0]
    address = "http://127.0.0.1:23333"
    assert address in source
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(source.replace(address, server.address), str(DOCUMENT), "exec"), {})
    printed = output.getvalue().splitlines()
    assert "name='add'" in output.getvalue()
    assert printed[-1] in ("Lyon", "Paris")
