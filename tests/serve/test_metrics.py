import json
import re
from pathlib import Path

from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, serving

import serve

URL = "/v1/chat/completions"


def values(client):
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_what_is_counted():
    with serving(FakeModel(lambda request, index: "abc")) as client:
        for stream in (True, False):
            client.post(URL, json={"messages": MESSAGES, "stream": stream, "n": 2})
        client.post(URL, json={"messages": MESSAGES, "temperature": -1})
        found = values(client)
    prompt = len("user\nHi\nassistant\n") + 3
    assert found["jaxdeploy_prompt_tokens_total"] == 2 * prompt
    assert found["jaxdeploy_generation_tokens_total"] == 4 * 4
    assert found["jaxdeploy_time_to_first_token_seconds_count"] == 4
    assert found["jaxdeploy_inter_token_latency_seconds_count"] == 4 * 3
    assert found["jaxdeploy_e2e_request_latency_seconds_count"] == 4
    assert found['jaxdeploy_answers_total{finish_reason="stop"}'] == 4
    assert found[f'jaxdeploy_http_requests_total{{path="{URL}",status="200"}}'] == 2
    assert found[f'jaxdeploy_http_requests_total{{path="{URL}",status="400"}}'] == 1
    assert found["jaxdeploy_compile_misses_total"] == 0


def test_what_the_engine_is_doing():
    model = FakeModel(lambda request, index: "abc")
    with serving(model) as client:
        model.runner.free.clear()
        with client.stream("POST", URL, json={"messages": MESSAGES, "stream": True, "n": 3, "max_tokens": 1}) as answer:
            # The client reads the answer when it is complete, so the engine must go on by itself.
            model.runner.free.set()
            answer.read()
        found = values(client)
    assert found["jaxdeploy_requests_running"] == 0
    assert found["jaxdeploy_cache_pages"] == 10
    assert found["jaxdeploy_cache_usage_ratio"] == 0


def test_the_dashboard_asks_for_metrics_that_exist():
    with serving(FakeModel(lambda request, index: "abc")) as client:
        text = client.get("/metrics").text
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    series = {name + suffix for name, kind in kinds.items() for suffix in ("_bucket" if kind == "histogram" else "",)}
    dashboard = (Path(serve.__file__).parent / "grafana.json").read_text()
    json.loads(dashboard)
    wanted = set(re.findall(r"jaxdeploy_\w+", dashboard))
    assert len(wanted) > 15
    assert wanted <= series
