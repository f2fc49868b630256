"""The serving benchmark, end to end against the fake server, and its arithmetic."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench():
    """The package that the script is made of."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        for name in ("report", "workload", "chart", "http_stream"):
            assert importlib.util.find_spec(f"serving_bench.{name}") is not None
        import serving_bench.chart
        import serving_bench.http_stream
        import serving_bench.report
        import serving_bench.workload

        yield serving_bench
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def address():
    """The fake server, in a process of its own."""
    command = [sys.executable, "-W", "error", str(SCRIPTS / "serve_fake.py"), "--server-port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        assert found is not None
        yield found[0]
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def run_script(*arguments):
    command = [sys.executable, "-W", "error", str(SCRIPTS / "bench_serving.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_random_prompts(address, tmp_path, endpoint):
    output = tmp_path / "numbers.json"
    done = run_script(
        *("--base-url", f"{address}/v1", "--endpoint", endpoint, "--concurrency", "1,5", "--num-prompts", "10"),
        *("--input-len", "8", "--output-len", "6", "--api-key", "secret", "--output", str(output)),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(output.read_text())
    assert "secret" not in output.read_text()
    assert [result["concurrency"] for result in record["results"]] == [1, 5]
    for result in record["results"]:
        assert (result["requests"], result["failed"]) == (10, 0)
        assert result["output_tokens"] == 60
        assert result["prompt_tokens"] > 0
        assert result["tokens_per_second"] == pytest.approx(60 / result["seconds"])
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            assert 0 <= result[name]["p50"] <= result[name]["p95"] <= result[name]["p99"]
        assert 0 < result["ttft_ms"]["p50"] < result["e2e_ms"]["p99"]
    for word in ("tokens/s", "TTFT p95", "ITL p99", "E2E mean"):
        assert word in done.stdout
    ET.fromstring(output.with_suffix(".svg").read_text())


def test_a_dataset_at_a_rate(address, tmp_path):
    dataset = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "Question?"}, {"from": "gpt", "value": "x" * 12}]
    dataset.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[1:]}, {}]))
    done = run_script(
        *("--base-url", f"{address}/v1", "--dataset", str(dataset), "--concurrency", "4", "--num-prompts", "8"),
        *("--request-rate", "200", "--model", "fake"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +4 +8 +0 ", done.stdout, re.MULTILINE)


def test_what_fails_is_said(address, tmp_path):
    wrong = run_script("--base-url", f"{address}/v1", "--model", "other", "--concurrency", "1")
    assert wrong.returncode == 1
    assert "model_not_found" in wrong.stderr
    nobody = run_script("--base-url", "http://127.0.0.1:9/v1")
    assert nobody.returncode == 1
    assert "is --base-url right?" in nobody.stderr


def test_times_of_an_answer(bench):
    def event(value):
        return f"data: {json.dumps(value)}\n\n".encode()

    def text(content):
        return event({"choices": [{"delta": {"content": content}}]})

    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    pieces = [
        (1.0, event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})),
        (2.0, text("a") + text("b")[:9]),
        (5.0, text("b")[9:]),
        (6.0, usage + b"data: [DONE]\n\n"),
    ]
    timed = bench.report.parse(bench.http_stream.Answer(200, 0.5, 7.0, pieces))
    assert (timed.ttft, timed.gaps, timed.e2e, timed.prompt_tokens, timed.tokens) == (1.5, [3.0], 6.5, 3, 4)


def test_an_error_in_the_stream_is_a_failure(bench):
    pieces = [(1.0, b'data: {"error": {"message": "the engine failed"}}\n\ndata: [DONE]\n\n')]
    answer = bench.http_stream.Answer(200, 0.5, 7.0, pieces)
    assert "the engine failed" in bench.report.parse(answer)
    with pytest.raises(ValueError, match="all 1 requests failed"):
        bench.report.summary(1, [answer])


def test_percentiles(bench):
    found = bench.report.statistics([i / 1000 for i in range(100, 0, -1)])
    assert found == {"mean": 50.5, "p50": 50, "p95": 95, "p99": 99}


def test_prompts_are_the_same_every_time_and_differ(bench):
    jobs = bench.workload.random_jobs(20, 12, 5, seed=1)
    assert jobs == bench.workload.random_jobs(20, 12, 5, seed=1)
    assert len({job.prompt for job in jobs}) == 20
    assert {len(job.prompt.split()) for job in jobs} == {12}
