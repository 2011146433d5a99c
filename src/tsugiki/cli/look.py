"""Commands that measure and show: `tsugiki eval`, `methods`, `report` and `cache`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsugiki.cli.fast_start import import_libraries
from tsugiki.cli.flags import Loading
from tsugiki.cli.terminal import print_command_after_trying, print_line, print_table
from tsugiki.data.records import AssistantTurns, Completion, Reading
from tsugiki.errors import TsugikiError
from tsugiki.language import _

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tsugiki.cli.help import Commands
    from tsugiki.training.score.targets import EvaluationTarget


def evaluate_command(
    *,
    data: list[str] | None = None,
    columns: list[str] | None = None,
    questions: Path | None = None,
    pairs: list[str] | None = None,
    model: list[str] | None = None,
    adapter: list[str] | None = None,
    characters: Annotated[int | None, typer.Option(min=1)] = None,
    assistant_turns: AssistantTurns = "all",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    chat_template: str | None = None,
    json_: bool = False,
    loading: Loading,
) -> None:
    """Show loss, perplexity and bits per character of models and adapters on the same text.

    With --questions, show the share of questions that they answer correctly; with --pairs, how often they prefer the
    better of two answers.

    Args:
        data: Text to evaluate on: same formats as the data of `tsugiki train`; can be repeated.
        columns: Names of columns or fields that differ from those of Tsugiki: prompt=title,completion=body; can be
            repeated.
        questions: Instead of --data, prompts with expected answers: JSON Lines with prompt and expected.
        pairs: Instead of --data, pairs of answers: same formats as the data of `tsugiki train --preference`; can be
            repeated.
        model: Model: 'embedded', a folder, a GGUF file, or a hub id; can be repeated.
        adapter: Adapter: a folder or a name in the library; can be repeated. Its base is --model, if exactly one is
            given, otherwise the base that the adapter names; without --model, this base is evaluated as well.
        characters: Approximate number of characters to evaluate, in whole windows. Default: all.
        assistant_turns: Which answers of a conversation are scored: all, or the last one.
        max_new_tokens: Largest number of tokens of an answer to --questions.
        chat_template: Chat template for conversations and for prompts with completions: a Jinja file, default (a plain
            one) or none. Default: that of the adapter, or of the tokenizer.
        json_: Print one JSON object per line.
    """

    import_libraries()
    from tsugiki.cli.summary import print_answers, print_evaluations, print_scores
    from tsugiki.data.read.answers import holds_completions
    from tsugiki.data.read.files import record_kinds
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.score.questions import read_questions
    from tsugiki.training.score.targets import (
        answer_with_targets,
        evaluate_targets,
        evaluation_targets,
        loaded_targets,
        score_pairs_with_targets,
    )

    if [bool(data), questions is not None, bool(pairs)].count(True) != 1:
        message = _(
            "give one of --data, a text to evaluate on, --questions, prompts with expected answers, and --pairs, two "
            "answers to each prompt"
        )
        raise TsugikiError(message)
    chosen = evaluation_targets(model or [], adapter or [])
    tried = adapter[0] if adapter else None, model[0] if model else None
    load = partial(loaded_targets, chosen, chat_template=chat_template, **asdict(loading))
    if questions is not None:
        asked = read_questions(questions)
        loaded = load(only_pairs=all(isinstance(question.prompt, str) for question in asked))
        answers = answer_with_targets(loaded, asked, max_new_tokens, ProgressDisplay())
        if json_:
            _print_json(chosen, answers)
        else:
            print_answers([str(target) for target in chosen], list(answers))
            print_command_after_trying(*tried)
        return
    if pairs:
        notes = list[str]()
        named = _columns(columns)
        loaded = load(only_pairs=holds_completions(pairs, named))
        scored = score_pairs_with_targets(loaded, pairs, named, notes, ProgressDisplay())
        if json_:
            _print_json(chosen, scored)
        else:
            print_scores([str(target) for target in chosen], list(scored), notes)
            print_command_after_trying(*tried)
        return
    assert data
    reading, named = Reading(), _columns(columns)
    loaded = load(only_pairs=record_kinds(data, named) == {Completion})
    results = evaluate_targets(
        loaded, data, assistant_turns, characters, ProgressDisplay(), columns=named, reading=reading
    )
    if json_:
        _print_json(chosen, results)
        return
    found, more = list(results), list(reading.notes())
    if characters is not None and found[0].characters > characters:
        message = _("--characters {asked:,} was rounded up to {measured:,}: only whole windows are evaluated")
        more.append(message.format(asked=characters, measured=found[0].characters))
    print_evaluations([str(target) for target in chosen], found, more)
    print_command_after_trying(*tried)


def _columns(texts: list[str] | None) -> dict[str, str]:
    from tsugiki.data.read.schemas import parse_columns

    try:
        return parse_columns(texts or [])
    except ValueError as error:
        raise TsugikiError(str(error)) from error


def _print_json(chosen: "Sequence[EvaluationTarget]", results: "Iterable[BaseModel]") -> None:
    """Print the result of each target as one line of JSON."""
    for target, result in zip(chosen, results, strict=True):
        names = {"model": target.model, "adapter": target.adapter_name or None}
        typer.echo(json.dumps(names | result.model_dump(mode="json")))


def methods_command(
    name: str | None = None,
    *,
    model: str = "embedded",
) -> None:
    """List the methods to adapt a model, describe one of them, or list the layers that LoRA grafts.

    Args:
        name: Describe this method and its settings; 'targets': list the layers that LoRA grafts by default; without
            it, list all methods.
        model: Model whose parameters or layers are counted: 'embedded', a folder, or a hub id.
    """

    import_libraries("tsugiki.report.methods")
    from tsugiki.report.methods import describe_method, methods_table

    if name is None:
        print_table(
            methods_table(model),
            _("trainable parameters: of {model}, with default settings").format(model=model),
            _("tsugiki methods NAME describes one method"),
            _("tsugiki methods targets lists the layers that LoRA grafts"),
        )
        return
    if name == "targets":
        from tsugiki.report.methods import targets_table

        table, lines = targets_table(model)
        print_table(table, *lines)
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings.rows:
        print_table(settings)
    for note in notes:
        typer.echo(note)


def report_command(
    folder: Path,
) -> None:
    """Regenerate the page of a run, report.html, from its record.

    Args:
        folder: Folder of a run, which may still be running.
    """
    from tsugiki.cli.summary import print_command_after_run
    from tsugiki.report.run import write_report
    from tsugiki.training.record.run_record import read_record

    typer.echo(str(write_report(folder)))
    if (record := read_record(folder)).status == "finished":
        print_command_after_run(record, folder)


def list_cache_command(
    *,
    json_: bool = False,
) -> None:
    """List the quantised models in the cache, and how much room the rest of it takes.

    Args:
        json_: Print JSON, one object per line.
    """
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import cache_fields, cache_table, read_cache

    cached = read_cache()
    if json_:
        for entry in cached:
            typer.echo(json.dumps(cache_fields(entry), ensure_ascii=False))
    elif not cached:
        print_line(_("nothing is in the cache, {folder}").format(folder=cache_folder("")))
    else:
        total = format_size(sum(entry.bytes for entry in cached))
        print_table(cache_table(cached), _("{size} in {folder}").format(size=total, folder=cache_folder("")))


def clear_cache_command(
    kinds: list[str] | None = None,
) -> None:
    """Remove what is in the cache; it is made again, or downloaded again, when it is needed.

    Args:
        kinds: quantized, fingerprints, gguf, tokens, references or aozora; without it, everything is removed.
    """
    from tsugiki.io.atomic import remove_folder
    from tsugiki.io.cache import cache_folder
    from tsugiki.io.formatting import format_size
    from tsugiki.report.cache import KINDS, read_cache

    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        message = _("{kind}: not in the cache; known are {known}")
        raise TsugikiError(message.format(kind=unknown[0], known=", ".join(KINDS)))
    chosen = list(dict.fromkeys(kinds or KINDS))
    freed = sum(entry.bytes for entry in read_cache() if entry.kind in chosen)
    for kind in chosen:
        if cache_folder(kind).is_dir():
            remove_folder(cache_folder(kind))
    print_line(_("removed {size} from {folder}").format(size=format_size(freed), folder=cache_folder("")))


CACHE: "Commands" = {"list": (None, list_cache_command), "clear": (None, clear_cache_command)}
"""The commands below `tsugiki cache`."""
