"""`tsugiki generate`."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsugiki.cli.sampling import (
    AllowBaseMismatch,
    BaseWeights,
    MaxNewTokens,
    Model,
    Raw,
    RepetitionPenalty,
    Seed,
    System,
    Temperature,
    TopP,
    TrustRemoteCode,
)
from tsugiki.errors import TsugikiError
from tsugiki.language import _

if TYPE_CHECKING:
    from tsugiki.generation.prompts import Prompt
    from tsugiki.training.evaluation.targets import EvaluationTarget


def generate_command(
    model: Model = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; - is the standard input. Can be repeated.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="File with a prompt in each line; in a .jsonl file, objects with prompt. - is the standard input."
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(help="Adapter: a folder, such as that of a run or a checkpoint, or a name in the library."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what the base writes beside what it writes with the adapter.")
    ] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Print one JSON object in each line: model, adapter, prompt and text.")
    ] = False,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Seed = 0,
    raw: Raw = False,
    system: System = None,
    dtype: BaseWeights = None,
    allow_base_mismatch: AllowBaseMismatch = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Continue prompts with a model, alone or with an adapter; the text appears while it is generated.

    If the adapter has learned conversations, a prompt is the user's turn, which the model answers.
    """
    from tsugiki.cli.prompts import read_prompts

    if model is None and adapter is None:
        raise TsugikiError(_("give a model as --model, or an adapter as --adapter"))
    if compare and adapter is None:
        raise TsugikiError(_("--compare needs an --adapter, which is compared with its base"))
    texts = read_prompts(prompt or (), prompts)

    from tsugiki.cli.libraries import import_libraries

    import_libraries()
    from tsugiki.generation.prompts import as_prompt, learned_conversations
    from tsugiki.generation.texts import Sampling, generate_text, generate_texts
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.training.evaluation.targets import EvaluationTarget, evaluation_targets, loaded_targets

    chosen = evaluation_targets([model] if model else [], [adapter] if adapter else [])[-1:]
    if compare:
        chosen = [EvaluationTarget(chosen[0].model), *chosen]
    sampling = Sampling(max_new_tokens, temperature, top_p, seed, repetition_penalty)
    display, results = ProgressDisplay(), list[list[str]]()
    display.announce(_("loading {model}").format(model=chosen[0]))
    targets = loaded_targets(chosen, allow_base_mismatch, trust_remote_code, None, dtype)
    _target, loaded, tokenizer = next(targets)
    as_turns = not raw and learned_conversations(chosen[-1].adapter, tokenizer)
    inputs: list[Prompt] = [as_prompt(text, as_turns, system) for text in texts]
    if not compare and not jsonl:
        for text, model_input in zip(texts, inputs, strict=True):
            _stream(text, model_input, lambda turn, emit: generate_text(loaded, tokenizer, turn, sampling, emit))
        return
    while True:
        with display.stage(_("writing"), None):
            results.append(generate_texts(loaded, tokenizer, inputs, sampling))
        following = next(targets, None)
        if following is None:
            break
        _target, loaded, tokenizer = following
    if jsonl:
        _print_jsonl(chosen, texts, results)
    else:
        _print_columns(chosen, texts, results)


def _stream(text: str, prompt: "Prompt", generate: Any) -> None:
    """Print a text and its continuation, or a question and its answer, while it is generated."""
    started = False

    def emit(piece: str) -> None:
        nonlocal started
        typer.echo(piece if started or not isinstance(prompt, str) else text + piece, nl=False)
        started = True

    generate(prompt, emit)
    if not started and not isinstance(prompt, str):
        typer.echo(_("(the model wrote nothing)"), err=True)
    typer.echo("" if started or not isinstance(prompt, str) else text)


def _print_jsonl(
    targets: "Sequence[EvaluationTarget]", prompts: Sequence[str], results: Sequence[Sequence[str]]
) -> None:
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    for number, prompt in enumerate(prompts):
        for target, written in zip(targets, results, strict=True):
            fields = {"model": target.model, "adapter": target.adapter_name or None, "prompt": prompt}
            typer.echo(json.dumps({**fields, "text": written[number]}, ensure_ascii=not is_utf8))


def _print_columns(
    targets: "Sequence[EvaluationTarget]", prompts: Sequence[str], results: Sequence[Sequence[str]]
) -> None:
    """Print a table for each prompt, with a column for each target."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tsugiki.report.formatting import printable

    console = Console(highlight=False, markup=False)
    for number, prompt in enumerate(prompts):
        table = Table(title=Text(printable(prompt)), title_justify="left", expand=True)
        for target in targets:
            table.add_column(Text(target.adapter_name or target.model), ratio=1, overflow="fold")
        table.add_row(*(Text(written[number].strip()) for written in results))
        console.print(table)
