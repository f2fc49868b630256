"""A server process with a model that answers ``tick`` slowly: PORT DRAIN_SECONDS."""

import sys
import time

from support.fake_engine import FakeModel

from serve.api_server import run
from serve.options import ServerOptions


def load(progress):
    progress("compile", 1, 2)
    model = FakeModel(lambda request, index: "tick " * 8)
    step = model.runner.step
    model.runner.step = lambda: (time.sleep(0.01), step())
    return model


if __name__ == "__main__":
    options = ServerOptions(server_name="127.0.0.1", server_port=int(sys.argv[1]), drain_seconds=float(sys.argv[2]))
    run(options, load, announce=lambda line: print(line, flush=True))
