"""`tsugiki generate`."""

from typing import Annotated

import typer


def generate_command(
    model: Annotated[str, typer.Option(help="Model: 'embedded', a folder, a GGUF file, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="Text to continue.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: a folder, such as that of a run, or a name in the library.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Largest number of new tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most probable token.")] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Sample from the tokens with this total probability.")
    ] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Load an adapter that was trained on another base.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings, with all your rights.")
    ] = False,
) -> None:
    """Continue a prompt with a model; the text appears while it is generated."""
    from tsugiki.adapters.chat_template import with_chat_template
    from tsugiki.adapters.format import load_adapter
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.adapters.vocabulary import with_new_words
    from tsugiki.base.loading import default_device, load_model, load_tokenizer
    from tsugiki.train.evaluation.sample import Sampling, generate_text

    base = load_model(model, trust_remote_code=trust_remote_code).to(default_device())
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    if adapter is not None:
        folder = adapter_folder(adapter)
        tokenizer = with_chat_template(with_new_words(base, tokenizer, folder), folder)
        load_adapter(base, folder, allow_base_mismatch=allow_base_mismatch)
    started = False

    def emit(text: str) -> None:
        nonlocal started
        typer.echo(text if started else prompt + text, nl=False)
        started = True

    generate_text(base, tokenizer, prompt, Sampling(max_new_tokens, temperature, top_p, seed), emit)
    typer.echo("" if started else prompt)
