import asyncio
import json

import pytest
from support.fake_engine import THINK_TEMPLATE, TOOL_TEMPLATE, FakeModel

from jaxdeploy.errors import ConfigError
from serve.metrics import Metrics
from serve.options import ServerOptions
from serve.service import make_service, sampling_defaults

DEFAULTS = {"temperature": 0.5, "top_k": None, "do_sample": True}


def service_of(template, **options):
    async def make():
        model = FakeModel(lambda request, index: "", template=template)
        try:
            return make_service(model, ServerOptions(**options), Metrics())
        finally:
            model.close()

    return asyncio.run(make())


def test_sampling_defaults(tmp_path):
    assert sampling_defaults("auto", DEFAULTS) == {"temperature": 0.5}
    assert sampling_defaults("none", DEFAULTS) == {}
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"top_p": 0.8}))
    assert sampling_defaults(str(file), DEFAULTS) == {"top_p": 0.8}


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_bad_generation_config(tmp_path, content):
    file = tmp_path / "generation_config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="generation-config"):
        sampling_defaults(str(file), {})


def test_formats_are_chosen_from_the_model():
    plain, thinking = service_of(TOOL_TEMPLATE), service_of(THINK_TEMPLATE)
    assert (plain.tool_parser, plain.thinks, plain.name) == ("hermes", False, "fake")
    assert thinking.thinks


def test_formats_and_name_may_be_given():
    service = service_of(THINK_TEMPLATE, tool_call_parser="mistral", reasoning_parser="none", model_name="mine")
    assert (service.tool_parser, service.tool_format.name, service.thinks) == ("mistral", "mistral", False)
    assert service.name == "mine"
    assert service_of(TOOL_TEMPLATE, reasoning_parser="think").thinks
    assert service_of(TOOL_TEMPLATE, tool_call_parser="none").tool_format is None


def test_an_unknown_parser_is_an_error_at_once():
    with pytest.raises(ConfigError, match="nonsense"):
        service_of(TOOL_TEMPLATE, tool_call_parser="nonsense")
