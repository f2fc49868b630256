"""A pipeline without a model, for tests of the command line."""

from dataclasses import dataclass, field

from jaxdeploy.cache.sizing import MemoryPlan


@dataclass
class Delta:
    """A piece of an answer."""

    text: str
    finish_reason: str | None = None


@dataclass
class FakeEngine:
    """Holds a memory plan and nothing else."""

    memory: MemoryPlan = field(
        default_factory=lambda: MemoryPlan(
            weight_bytes=2**20,
            step_bytes=0,
            state_bytes=0,
            page_bytes=2**10,
            num_pages=16,
            page_size=64,
            device_bytes=2**30,
        )
    )


class FakePipeline:
    """Answers with scripted deltas; an exception in a script is raised in its place.

    Attributes:
        scripts: one list of texts, Deltas and exceptions per answer.
        asked: the messages of each request. aborted: how many answers were closed before their end.
    """

    def __init__(self, *scripts: list):
        self.scripts = list(scripts)
        self.asked: list = []
        self.sampling: list = []
        self.aborted = 0
        self.closed = False
        self.engine = FakeEngine()

    def stream_infer(self, prompts, gen_config=None):
        self.asked.append(prompts)
        self.sampling.append(gen_config)
        finished = False
        try:
            for step in self.scripts.pop(0):
                if isinstance(step, BaseException):
                    raise step
                yield Delta(step) if isinstance(step, str) else step
            finished = True
        finally:
            self.aborted += not finished

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True
