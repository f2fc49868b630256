"""The report of the benchmarks: it holds their numbers and commands, and nothing else of the document changes."""

import json
import re
import struct
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PLOT_BYTES = 60_000

ENGINE_OPTIONS = {"shape": "tiny", "weights": "w4a16", "quant_policy": 8, "concurrency": [1, 16], "trace": "folder"}
ENGINE = {
    "command": "python scripts/bench_engine.py --weights w4a16",
    "date": "2026-01-02",
    "device": "NVIDIA H100",
    "jax": "0.11.2",
    "options": ENGINE_OPTIONS,
    "memory": {"weights GB": 5.25, "tokens": 16896},
    "decode": [
        {"batch": 1, "decode tokens/s": 356.4, "ms/step": 2.806},
        {"batch": 16, "decode tokens/s": 4453.2, "ms/step": 3.593},
    ],
    "load": [{"concurrency": 16, "tokens out/s": 3210.9, "TTFT p50 ms": 41.5, "TTFT p99 ms": 222.25}],
    "stall": {"streams": 15, "ITL p99 ms": 31.25},
    "compile misses": 0,
}
TIMES = {"mean": 11.0, "p50": 10.0, "p95": 19.0, "p99": 20.0}
SERVING = {
    "options": {"model": "m", "endpoint": "chat", "title": None},
    "hardware": "a CPU",
    "results": [
        {"concurrency": clients, "requests": 16, "failed": 0, "requests_per_second": 1.5, "tokens_per_second": 77.25,
         "ttft_ms": TIMES, "itl_ms": TIMES, "e2e_ms": TIMES}
        for clients in (1, 8)
    ],
}  # fmt: skip
SOAK = {
    "command": "python scripts/soak_engine.py",
    "device": "cpu",
    "jax": "0.12",
    "options": {"model": "tiny"},
    "soak": [
        {"set-up": "drafts", "requests": 2500, "compile misses": 0, "growth MiB": 1.25, "reasons": {"stop": 3, "abort": 2},
         "memory (s, requests, MiB)": [[0, 1, 300.0], [1, 2, 302.0]], "wrong": []}
    ],
}  # fmt: skip
DOCUMENT = """# Numbers
before
<!-- bench_report: engine -->
old engine
<!-- bench_report: end -->
between
<!-- bench_report: soak -->
<!-- bench_report: end -->
<!-- bench_report: serving -->
old serving
<!-- bench_report: end -->
after
"""


@pytest.fixture
def report(monkeypatch, tmp_path):
    """Calls the script on some data; gives its status, the document afterwards and the folder of pictures."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_report import main

    document = tmp_path / "docs" / "numbers.md"
    document.parent.mkdir()
    document.write_text(DOCUMENT)

    def call(*contents: str) -> tuple[int, str, Path]:
        files = [tmp_path / f"{i}.json" for i in range(len(contents))]
        for file, text in zip(files, contents, strict=True):
            file.write_text(text)
        status = main([*map(str, files), "--into", str(document)])
        return status, document.read_text(), document.parent / "plots"

    yield call
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmark_report", "bench_report")]:
        del sys.modules[name]


def section(text: str, name: str) -> str:
    found = re.search(rf"<!-- bench_report: {name} -->\n(.*?)<!-- bench_report: end -->", text, re.DOTALL)
    assert found is not None
    return found[1]


def test_every_kind_has_its_section(report):
    status, text, plots = report(json.dumps(ENGINE), json.dumps(SERVING), json.dumps(SOAK))
    assert status == 0
    assert re.sub(
        r"(<!-- bench_report: (?!end)\w+ -->\n).*?(?=<!-- bench_report: end)", r"\1", text, flags=re.DOTALL
    ) == (DOCUMENT.replace("old engine\n", "").replace("old serving\n", ""))
    engine = section(text, "engine")
    assert "### tiny, w4a16 weights, int8 KV: NVIDIA H100, jax 0.11.2" in engine
    assert "`python scripts/bench_engine.py --weights w4a16` (2026-01-02)" in engine
    assert (
        "| batch | decode tokens/s | ms/step |\n| --- | --- | --- |\n| 1 | 356 | 2.81 |\n| 16 | 4,453 | 3.59 |"
        in engine
    )
    assert "| 15 | 31.2 |" in engine
    assert "Memory: weights GB 5.25, tokens 16,896. Programs compiled after the start: 0." in engine
    serving = section(text, "serving")
    assert "### m, chat: a CPU" in serving
    assert "| 8 | 16 | 0 | 1.50 | 77.2 | 10.0 | 20.0 | 10.0 | 20.0 | 10.0 | 20.0 |" in serving
    soak = section(text, "soak")
    for line in ("|  | drafts |", "| requests | 2,500 |", "| answers ended by | 2 abort, 3 stop |", "| wrong | 0 |"):
        assert line in soak
    assert "| memory MiB | 300 to 302 |" in soak
    linked = re.findall(r"!\[[^\]]*\]\(plots/([^)]+)\)", text)
    assert sorted(linked) == sorted(path.name for path in plots.iterdir())
    assert [name.split("-")[0] for name in linked] == ["engine", "serving"]
    for path in plots.iterdir():
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert (data[:4], 500 < width < 1200, 200 < height < 500) == (b"\x89PNG", True, True)
        assert len(data) < PLOT_BYTES


def test_again_is_the_same_and_other_sections_stay(report):
    _, first, plots = report(json.dumps(ENGINE))
    assert "old serving" in first
    pictures = [path.read_bytes() for path in plots.iterdir()]
    _, again, _ = report(json.dumps(ENGINE))
    assert again == first
    assert [path.read_bytes() for path in plots.iterdir()] == pictures


def test_runs_of_one_model_share_a_table_and_others_do_not(report):
    more = {
        **ENGINE,
        "decode": [{"batch": 64, "decode tokens/s": 12423.0, "ms/step": 5.1}],
        "load": [],
        "command": "more",
    }
    other = {**ENGINE, "options": ENGINE_OPTIONS | {"quant_policy": 0}}
    status, text, plots = report("\n".join(map(json.dumps, (ENGINE, more, other))))
    assert status == 0
    engine = section(text, "engine")
    assert "| 16 | 4,453 | 3.59 |\n| 64 | 12,423 | 5.10 |" in engine
    assert "`more` (2026-01-02)" in engine
    assert engine.count("### ") == 2
    assert len(list(plots.iterdir())) == 1, "ways to store one model on one device are lines of one picture"


def test_a_file_without_its_command_gets_it_from_the_options(report):
    bare = {key: value for key, value in ENGINE.items() if key not in ("command", "date", "load")}
    _, text, _ = report(json.dumps(bare))
    wanted = "`python scripts/bench_engine.py --shape tiny --weights w4a16 --quant-policy 8 --concurrency 1,16`\n"
    assert wanted in section(text, "engine")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[1]", "holds list"), ('{"rows": 1}', "was written by none of bench_engine.py")],
)
def test_other_files_are_refused_and_nothing_is_written(report, capsys, content, message):
    status, text, _ = report(json.dumps(SOAK), content)
    assert (status, text) == (1, DOCUMENT)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("nothing", "has no line '<!-- bench_report: engine -->'"),
        ("<!-- bench_report: engine -->\n<!-- bench_report: soak -->\n<!-- bench_report: end -->", "has no line"),
        ("<!-- bench_report: engine -->\n" * 2 + "<!-- bench_report: end -->", "twice"),
    ],
)
def test_a_document_without_marks_is_refused(monkeypatch, document, message):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmark_report.markdown import with_section

    with pytest.raises(ValueError, match=message):
        with_section(document, "engine", "new")


def test_commands_name_no_secret_and_no_folder(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_serving import parser
    from benchmark_report.origin import origin

    given = ["--api-key", "secret", "--concurrency", "1,2", "--dataset", "/some/where/chats.json", "--allow-eos"]
    told = origin("bench_serving.py", parser(), parser().parse_args([*given, "--output", "x.json", "--title", "a b"]))
    wanted = "python scripts/bench_serving.py --concurrency 1,2 --dataset chats.json --allow-eos --title 'a b'"
    assert told["command"] == wanted
    assert told["options"]["dataset"] == "chats.json"
    assert not {"api_key", "output"} & told["options"].keys()
