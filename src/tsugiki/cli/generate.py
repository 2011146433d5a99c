"""`tsugiki generate`."""

from typing import Annotated

import typer


def generate_command(
    model: Annotated[str, typer.Option(help="'embedded', a model folder, a GGUF file, or a hub id.")],
    prompt: Annotated[str, typer.Option(help="The text to go on from.")],
    adapter: Annotated[str | None, typer.Option(help="An adapter: a folder, such as a run's, or a library's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Draw from the likeliest tokens of this share.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="The same seed writes the same text.")] = 0,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Load an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Let a model go on from a prompt; the text comes as it is written."""
    from tsugiki.adapters.format import load_adapter
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.base.loading import default_device, load_model, load_tokenizer
    from tsugiki.train.evaluation.sample import Sampling, generate_text

    base, tokenizer = load_model(model).to(default_device()), load_tokenizer(model)
    if adapter is not None:
        load_adapter(base, adapter_folder(adapter), allow_base_mismatch=allow_base_mismatch)
    begun = False

    def emit(text: str) -> None:
        nonlocal begun
        typer.echo(text if begun else prompt + text, nl=False)
        begun = True

    generate_text(base, tokenizer, prompt, Sampling(max_new_tokens, temperature, top_p, seed), emit)
    typer.echo("" if begun else prompt)
