"""What the engine keeps in memory, as the start-up line."""

from jaxdeploy.cache.sizing import MemoryPlan


def format_bytes(count: int) -> str:
    """``count`` bytes with about three digits, in units of 1024: ``"3.35 GiB"``."""
    if count < 1000:
        return f"{count} B"
    size, unit = count / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    decimals = 2 if size < 10 else 1 if size < 100 else 0
    return f"{size:.{decimals}f} {unit}"


def memory_line(plan: MemoryPlan) -> str:
    """Weights, KV pages, the tokens they hold, step buffers, and the memory of each."""
    pages = f"{plan.num_pages:,} pages x {plan.page_size} tokens = {plan.tokens:,} tokens"
    parts = [f"weights {format_bytes(plan.weight_bytes)}", f"KV cache {format_bytes(plan.pool_bytes)} ({pages})"]
    if plan.step_bytes:
        parts.append(f"step buffers {format_bytes(plan.step_bytes)}")
    if plan.device_bytes:
        parts.append(f"device {format_bytes(plan.device_bytes)}")
    return ", ".join(parts)
