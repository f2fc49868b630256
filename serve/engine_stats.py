"""What the engine is doing, in numbers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment; counts are since its start."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    pages_used: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    compile_misses: int = 0

    @property
    def page_use(self) -> float:
        """Share of the pages in use."""
        return self.pages_used / self.pages if self.pages else 0.0


def read_stats(engine: Any) -> EngineStats:
    """The numbers of an engine; lengths and counts only, so any thread may ask while it runs."""
    scheduler, allocator, executor = engine.scheduler, engine.allocator, engine.executor
    return EngineStats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        pages=allocator.num_pages,
        pages_used=allocator.used_pages,
        # An engine without a prefix cache has nothing to count.
        prefix_queried_tokens=getattr(scheduler, "prefix_queried_tokens", 0),
        prefix_hit_tokens=getattr(scheduler, "prefix_hit_tokens", 0),
        preemptions=scheduler.preemptions,
        steps=executor.steps,
        compile_misses=getattr(executor, "compile_misses", 0),
    )
