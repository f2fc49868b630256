"""What check_env reports on a machine with a CPU only."""

import json
import platform
import re
from importlib.metadata import version

import jax
import pytest

from jaxdeploy.cli import check_env
from jaxdeploy.cli.main import main
from jaxdeploy.demo import demo_model_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["check_env", *arguments])
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_json_report(capsys):
    report = json.loads(run(capsys, "--json"))
    assert report["python"] == platform.python_version()
    assert report["packages"]["jax"] == version("jax")
    assert set(report["packages"]) == set(check_env.PACKAGES)
    assert len(report["devices"]) == len(jax.devices())
    assert report["devices"][0]["platform"] == "cpu"
    assert report["device_error"] is None
    assert report["demo_model"] == str(demo_model_path())


def test_kernels_are_listed_with_the_implementations_that_exist():
    kernels = check_env.describe_kernels()
    assert "reference" in kernels["paged_attention"]
    assert all(set(found) <= set(check_env.IMPLEMENTATIONS) for found in kernels.values())


def test_text_report_has_a_line_per_fact(capsys):
    lines = dict(line.split("  ", 1) for line in run(capsys).splitlines())
    names = set(lines)
    assert {"python", "system", "jax", "CUDA plugin", "device 0", "compile cache", "demo model"} <= names
    assert lines["device 0"].strip() == "cpu cpu"


def test_a_backend_that_does_not_start_is_reported(monkeypatch):
    def no_backend():
        raise RuntimeError("no GPU driver")

    monkeypatch.setattr(jax, "devices", no_backend)
    report = check_env.collect()
    assert (report["devices"], report["device_error"]) == ([], "no GPU driver")
    assert any("no GPU driver" in line for line in check_env.report_lines(report))


def test_what_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(check_env, "installed", lambda package: None)
    monkeypatch.setattr("jaxdeploy.demo.DEMO_PACKAGE", "no_such_package")
    text = "\n".join(check_env.report_lines(check_env.collect()))
    assert "jaxdeploy[cuda13]" in text
    assert "jaxdeploy[demo]" in text
    assert re.search(r"^starlette +not installed$", text, re.MULTILINE)
