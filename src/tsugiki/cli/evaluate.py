"""`tsugiki eval`."""

from typing import Annotated

import typer

from tsugiki.data.records import AssistantTurns


def evaluate_command(
    data: Annotated[str, typer.Option(help="A .txt, .jsonl, .csv or .parquet file, a folder, or a dataset's id.")],
    model: Annotated[
        list[str] | None, typer.Option(help="'embedded', a model folder, a GGUF file, or a hub id; repeatable.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="An adapter, a folder or a library's, on the one --model or on the base that it names; repeatable."
        ),
    ] = None,
    characters: Annotated[
        int | None, typer.Option(min=1, help="Score about so many characters, spread evenly; all if unset.")
    ] = None,
    assistant_turns: Annotated[
        AssistantTurns, typer.Option(help="Which answers of a conversation are scored.")
    ] = "all",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an object a line.")] = False,
    allow_base_mismatch: Annotated[
        bool, typer.Option("--allow-base-mismatch", help="Load an adapter that was trained on another base.")
    ] = False,
) -> None:
    """Loss, perplexity and bits per character of models and adapters on the same text, in one table."""
    import json

    from tsugiki.cli.summary import print_evaluations
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.train.evaluation.targets import evaluate_targets, evaluation_targets

    chosen = evaluation_targets(model or [], adapter or [])
    results = evaluate_targets(chosen, data, assistant_turns, characters, allow_base_mismatch, ProgressDisplay())
    if as_json:
        for subject, result in zip(chosen, results, strict=True):
            names = {"model": subject.model, "adapter": subject.called or None}
            typer.echo(json.dumps(names | result.model_dump(mode="json")))
        return
    print_evaluations([str(subject) for subject in chosen], list(results))
