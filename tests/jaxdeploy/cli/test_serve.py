import subprocess
import sys

import pytest

from jaxdeploy.cli import main as cli
from jaxdeploy.cli.serve import split_list
from serve import api_server


def run_cli(monkeypatch, *args):
    """Options that the command line made, and the exit status; nothing is served."""
    seen = []
    monkeypatch.setattr(api_server, "run", lambda options, load, announce: seen.append(options))
    with pytest.raises(SystemExit) as end:
        cli.main(["serve", "api_server", *args])
    return (seen[0] if seen else None), end.value.code


def test_lmdeploys_flags(monkeypatch):
    line = (
        "some/model --server-name 127.0.0.1 --server-port 8000 --api-keys a,b --api-keys c --model-name m "
        "--allow-origins http://x --max-queue 3 --max-log-len 9 --log-level INFO --drain-seconds 1.5 "
        "--generation-config none --tool-call-parser hermes --reasoning-parser none --session_len 99"
    )
    options, status = run_cli(monkeypatch, *line.split())
    assert status in (0, None)
    assert (options.server_name, options.server_port, options.model_name) == ("127.0.0.1", 8000, "m")
    assert options.api_keys == ("a", "b", "c")
    assert options.allow_origins == ("http://x",)
    assert (options.max_queue, options.max_log_len, options.log_level, options.drain_seconds) == (3, 9, "INFO", 1.5)
    assert (options.generation_config, options.tool_call_parser, options.reasoning_parser) == ("none", "hermes", "none")


def test_lmdeploys_defaults(monkeypatch):
    options, _ = run_cli(monkeypatch)
    assert (options.server_name, options.server_port, options.allow_origins) == ("0.0.0.0", 23333, ("*",))


def test_keys_from_the_environment(monkeypatch):
    monkeypatch.setenv("JAXDEPLOY_API_KEYS", "one,two")
    options, _ = run_cli(monkeypatch)
    assert options.api_keys == ("one", "two")


@pytest.mark.parametrize("flags", [["--server-port", "70000"], ["--ssl-keyfile", "x"], ["--quant-policy", "3"]])
def test_bad_options_are_refused(monkeypatch, capsys, flags):
    options, status = run_cli(monkeypatch, *flags)
    assert (options, status) == (None, 2)
    assert capsys.readouterr().err.startswith("error:")


def test_lists():
    assert split_list(["a, b", "c,"]) == ("a", "b", "c")
    assert split_list(None) == ()


def test_help_needs_no_jax():
    code = "import sys, jaxdeploy.cli.serve, serve.options; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
