import pytest

from jaxdeploy.errors import ConfigError
from serve.options import ServerOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"server_port": 65536},
        {"ssl_keyfile": "key.pem"},
        {"ssl_certfile": "cert.pem"},
        {"api_keys": ("a", "")},
        {"log_level": "LOUD"},
        {"reasoning_parser": "guess"},
        {"max_queue": -1},
        {"drain_seconds": -0.5},
        {"max_body_bytes": 0},
        {"body_seconds": 0.0},
        {"max_log_len": -1},
    ],
)
def test_what_can_not_work_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0].replace("api", "API").replace("ssl", "TLS")):
        ServerOptions(**wrong)


def test_log_levels_in_small_letters():
    assert ServerOptions(log_level="info").log_level == "info"
