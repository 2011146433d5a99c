"""`tsugiki eval`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsugiki.cli.sampling import AllowBaseMismatch, BaseWeights, TrustRemoteCode
from tsugiki.data.read.reading import Reading
from tsugiki.data.read.schemas import parse_columns
from tsugiki.data.records import AssistantTurns
from tsugiki.errors import TsugikiError
from tsugiki.language import _

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tsugiki.training.evaluation.targets import EvaluationTarget


def evaluate_command(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to evaluate on: same formats as the data of `tsugiki train`; can be repeated."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Names of columns or fields that differ from those of Tsugiki: prompt=question,…"),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(help="Instead of --data, prompts with expected answers: JSON Lines with prompt and expected."),
    ] = None,
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
        int | None,
        typer.Option(min=1, help="Approximate number of characters to evaluate, in whole windows. Default: all."),
    ] = None,
    assistant_turns: Annotated[
        AssistantTurns, typer.Option(help="Which answers of a conversation are scored: all, or the last one.")
    ] = "all",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Largest number of tokens of an answer to --questions.")
    ] = 64,
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Chat template for conversations: a Jinja file, or default, a plain one. Default: that of the "
            "adapter, or of the tokenizer."
        ),
    ] = None,
    dtype: BaseWeights = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    allow_base_mismatch: AllowBaseMismatch = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show loss, perplexity and bits per character of models and adapters on the same text.

    With --questions, show the share of questions that they answer correctly.
    """
    from tsugiki.cli.libraries import import_libraries

    import_libraries()
    from tsugiki.cli.summary import print_answers, print_evaluations
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.evaluation.questions import read_questions
    from tsugiki.training.evaluation.targets import answer_with_targets, evaluate_targets, evaluation_targets

    if (not data) == (questions is None):
        raise TsugikiError(
            _("give either --data, a text to evaluate on, or --questions, prompts with expected answers")
        )
    chosen = evaluation_targets(model or [], adapter or [])
    if questions is not None:
        answers = answer_with_targets(
            chosen,
            read_questions(questions),
            max_new_tokens,
            ProgressDisplay(),
            chat_template=chat_template,
            allow_base_mismatch=allow_base_mismatch,
            trust_remote_code=trust_remote_code,
            dtype=dtype,
        )
        if as_json:
            _print_json(chosen, answers)
        else:
            print_answers([str(target) for target in chosen], list(answers))
        return
    assert data
    reading = Reading()
    results = evaluate_targets(
        chosen,
        data,
        assistant_turns,
        characters,
        ProgressDisplay(),
        columns=_columns(columns),
        reading=reading,
        chat_template=chat_template,
        allow_base_mismatch=allow_base_mismatch,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
    )
    if as_json:
        _print_json(chosen, results)
        return
    found, more = list(results), list(reading.notes())
    if characters is not None and found[0].characters > characters:
        more.append(
            _("--characters {asked:,} was rounded up to {measured:,}: only whole windows are evaluated").format(
                asked=characters, measured=found[0].characters
            )
        )
    print_evaluations([str(target) for target in chosen], found, more)


def _columns(text: str | None) -> dict[str, str]:
    try:
        return parse_columns(text) if text else {}
    except ValueError as error:
        raise TsugikiError(str(error)) from error


def _print_json(chosen: "Sequence[EvaluationTarget]", results: "Iterable[BaseModel]") -> None:
    """Print the result of each target as one line of JSON."""
    for target, result in zip(chosen, results, strict=True):
        names = {"model": target.model, "adapter": target.adapter_name or None}
        typer.echo(json.dumps(names | result.model_dump(mode="json")))
