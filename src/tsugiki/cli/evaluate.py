"""`tsugiki eval`."""

from typing import Annotated

import typer

from tsugiki.data.records import AssistantTurns


def evaluate_command(
    data: Annotated[str, typer.Option(help="Text to evaluate on: same formats as the data of `tsugiki train`.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model: 'embedded', a folder, a GGUF file, or a hub id; can be repeated.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter: a folder or a name in the library; can be repeated. Its base is --model, if exactly one is "
            "given, otherwise the base that the adapter names."
        ),
    ] = None,
    characters: Annotated[
        int | None, typer.Option(min=1, help="Approximate number of characters to evaluate. Default: all.")
    ] = None,
    assistant_turns: Annotated[
        AssistantTurns, typer.Option(help="Which answers of a conversation are scored: all, or the last one.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Load an adapter that was trained on another base.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings, with all your rights.")
    ] = False,
) -> None:
    """Show loss, perplexity and bits per character of models and adapters on the same text."""
    import json

    from tsugiki.cli.summary import print_evaluations
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.train.evaluation.targets import evaluate_targets, evaluation_targets

    chosen = evaluation_targets(model or [], adapter or [])
    results = evaluate_targets(
        chosen,
        data,
        assistant_turns,
        characters,
        ProgressDisplay(),
        allow_base_mismatch=allow_base_mismatch,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        for target, result in zip(chosen, results, strict=True):
            names = {"model": target.model, "adapter": target.adapter_name or None}
            typer.echo(json.dumps(names | result.model_dump(mode="json")))
        return
    print_evaluations([str(target) for target in chosen], list(results))
