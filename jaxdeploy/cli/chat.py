"""``jaxdeploy chat``: a conversation in the terminal, or one answer."""

import sys
from typing import Annotated

import typer

from jaxdeploy.cli import options, sampling_options
from jaxdeploy.cli.options import DEFAULTS

app = typer.Typer(add_completion=False)


def note(text: str) -> None:
    """Show a line that is not part of an answer: on stderr, so that stdout can be piped on."""
    print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_line(prompt: str) -> str:
    """The next line of stdin. The prompt is shown to a person only: a pipe gets answers and nothing else."""
    return input(prompt if sys.stdin.isatty() else "")


@app.command()
def chat(
    model: options.Model = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="Answer this once, print only the answer, and exit; - reads the text from stdin."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt of the conversation.")] = None,
    chat_template: options.ChatTemplate = None,
    temperature: sampling_options.Temperature = None,
    top_p: sampling_options.TopP = sampling_options.CHAT_TOP_P,
    top_k: sampling_options.TopK = sampling_options.CHAT_TOP_K,
    min_p: sampling_options.MinP = 0.0,
    repetition_penalty: sampling_options.RepetitionPenalty = 1.0,
    max_new_tokens: sampling_options.MaxNewTokens = 512,
    seed: sampling_options.Seed = None,
    session_len: options.SessionLen = DEFAULTS.session_len,
    cache_max_entry_count: options.CacheMaxEntryCount = options.DEFAULT_ENTRY_COUNT,
    cache_block_seq_len: options.CacheBlockSeqLen = DEFAULTS.cache_block_seq_len,
    quant_policy: options.QuantPolicy = DEFAULTS.quant_policy,
    kv_rotation: options.KvRotation = DEFAULTS.kv_rotation,
    lm_head_bits: options.LmHeadBits = DEFAULTS.lm_head_bits,
    model_format: options.ModelFormat = DEFAULTS.model_format,
    dtype: options.Dtype = DEFAULTS.dtype,
    tp: options.Tp = DEFAULTS.tp,
    max_batch_size: options.MaxBatchSize = 1,
    enable_prefix_caching: options.EnablePrefixCaching = DEFAULTS.enable_prefix_caching,
    max_prefill_token_num: options.MaxPrefillTokenNum = DEFAULTS.max_prefill_token_num,
    num_speculative_tokens: options.NumSpeculativeTokens = DEFAULTS.num_speculative_tokens,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Chat with a model.

    An empty line ends a message. `end` starts a new conversation, `exit` leaves. Ctrl-C stops an answer; twice at the
    prompt, it leaves.
    """
    sampling = sampling_options.generation_config(
        one_shot=prompt is not None,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    engine = options.engine_config(
        dtype=dtype,
        model_format=model_format,
        tp=tp,
        session_len=session_len,
        max_batch_size=max_batch_size,
        cache_max_entry_count=cache_max_entry_count,
        cache_block_seq_len=cache_block_seq_len,
        quant_policy=quant_policy,
        kv_rotation=kv_rotation,
        lm_head_bits=lm_head_bits,
        enable_prefix_caching=enable_prefix_caching,
        max_prefill_token_num=max_prefill_token_num,
        num_speculative_tokens=num_speculative_tokens,
        compile_cache=compile_cache,
    )
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.chat_loop import ChatLoop
    from jaxdeploy.cli.compile_cache import with_compile_cache
    from jaxdeploy.cli.memory_line import memory_line
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.pipeline import pipeline

    with ProgressBars() as progress:
        pipe = pipeline(
            model,
            backend_config=with_compile_cache(engine),
            chat_template_config=chat_template,
            progress=progress,
        )
    with pipe:
        note(memory_line(pipe.engine.memory))
        loop = ChatLoop(pipe, read_line, write, note, sampling, system)
        if prompt is None:
            enable_line_editing()
            loop.run()
        else:
            loop.ask(sys.stdin.read().strip() if prompt == "-" else prompt)


def enable_line_editing() -> None:
    """Arrow keys and history at the prompt, where Python has readline."""
    try:
        import readline  # noqa: F401  (importing it changes input())
    except ImportError:  # Windows
        return
