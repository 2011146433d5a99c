"""The commands as functions, for notebooks and scripts.

    record = tsugiki.train(model="embedded", data="texts", out="runs/first", prompts=["春は"])
    record                                                       # in a notebook: a small report with curves
    print(tsugiki.generate("春は", adapter="runs/first"))
    tsugiki.evaluate("other.txt", model="embedded", adapter="runs/first")

`train` and `preview` take the settings of `tsugiki train` by keyword: the fields of `RunConfig`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tsugiki.data.read.schemas import NO_COLUMNS
from tsugiki.data.records import AssistantTurns, Completion, Message
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

if TYPE_CHECKING:
    from tsugiki.report.evaluations import Evaluations
    from tsugiki.training.record.pairs import TwoScores
    from tsugiki.training.record.run_record import RunRecord
    from tsugiki.training.run.preview import Preview

Function = TypeVar("Function", bound=Callable[..., Any])


def _with_settings_of_a_run(function: Function, without: str = "") -> Function:
    """Show the fields of `RunConfig` in the signature and the docstring of a function that takes them by keyword.

    Args:
        function: takes the settings as `**settings`, the last of its parameters.
        without: the name of a setting to leave out.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    own = [parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    shown, lines = [], []
    for name, field in sorted(RunConfig.model_fields.items(), key=lambda item: not item[1].is_required()):
        if name == without:
            continue
        default = inspect.Parameter.empty if field.is_required() else field.default
        shown.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.annotation)
        )
        description = field.description or ""
        lines.append(f"    {name}: {' '.join(description.split())}")
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *shown])
    function.__doc__ = f"{inspect.getdoc(function)}\n\nSettings:\n" + "\n".join(lines)
    return function


@_with_settings_of_a_run
def train(*, resume: bool = False, **settings: Any) -> "RunRecord":
    """Train an adapter, or a whole model, and write its report, as `tsugiki train` does.

    Args:
        resume: continue the run in the folder `out`.
        settings: the settings of the run, listed below. `lora` is a `LoraConfig` or a mapping, such as {"r": 8}.

    Returns:
        The record of the run, which a notebook shows as a small report. The folder `out` holds the adapter, run.json
        and report.html.

    Raises:
        TsugikiError: an error that you can correct. Files that were in the folder before are unchanged.
    """
    from tsugiki.io.progress import quiet_libraries
    from tsugiki.report.run import ShownRecord, write_report
    from tsugiki.training.run.stages import train as train_run

    config = validated(RunConfig, settings, None)
    with quiet_libraries():
        record = train_run(config, resume=resume)
    write_report(Path(config.out))
    return ShownRecord.model_construct(record.model_fields_set, **dict(record))


@partial(_with_settings_of_a_run, without="out")
def preview(*, rows: int = 3, **settings: Any) -> "Preview":
    """Prepare a run as `train` would, without training, as `tsugiki preview` does.

    Args:
        rows: how many rows of the training data to show.
        settings: the settings of the run, listed below; `out` has no effect.

    Returns:
        The first rows, and counts, which a notebook shows with the tokens that are trained on in colour.

    Raises:
        TsugikiError: an error that would stop the run before its first step.
    """
    from tsugiki.io.progress import quiet_libraries
    from tsugiki.report.preview import ShownPreview
    from tsugiki.training.run.preview import preview as preview_run

    config = validated(RunConfig, {"out": "preview", **settings}, None)
    with quiet_libraries():
        return ShownPreview(**vars(preview_run(config, rows)))


def evaluate(
    data: str | Sequence[str],
    *,
    model: str | Sequence[str] = (),
    adapter: str | Sequence[str] = (),
    columns: Mapping[str, str] = NO_COLUMNS,
    characters: int | None = None,
    assistant_turns: AssistantTurns = "all",
    chat_template: str | None = None,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> "Evaluations":
    """Evaluate models and adapters on the same text, as `tsugiki eval` does.

    Args:
        data: the text, in a format of the training data, or several.
        model: name of a model, or several names: 'embedded', a folder, a GGUF file or a hub id.
        adapter: folder of an adapter or its name in the library, or several. Its base is `model` if that is one name,
            otherwise the base that its files name; without `model`, this base is evaluated as well.
        columns: names of columns or fields that differ from Tsugiki's, such as {"prompt": "question"}.
        characters: approximate number of characters to evaluate; None: all.
        assistant_turns: which answers of a conversation are scored.
        chat_template: for conversations, as in the settings of a run; None: that of each model or adapter.
        allow_base_mismatch: load adapters that were trained on another base.
        trust_remote_code: run Python code that a model brings, with all your rights.

    Returns:
        Name -> result, in the order of the arguments: models alone, then adapters (each after its base, if there is no
        `model`). A notebook shows it as a table.

    Raises:
        TsugikiError: nothing to evaluate, or the data, a model or an adapter cannot be read.
    """
    from tsugiki.data.read.files import record_kinds
    from tsugiki.io.progress import ProgressDisplay, quiet_libraries
    from tsugiki.report.evaluations import Evaluations
    from tsugiki.training.score.targets import evaluate_targets, evaluation_targets, loaded_targets

    chosen = evaluation_targets(_list(model), _list(adapter))
    only_pairs = record_kinds(data, columns) == {Completion}
    loaded = loaded_targets(chosen, allow_base_mismatch, trust_remote_code, chat_template, only_pairs=only_pairs)
    results = evaluate_targets(loaded, data, assistant_turns, characters, ProgressDisplay(), columns=columns)
    with quiet_libraries():
        return Evaluations(zip(map(str, chosen), results, strict=True))


def evaluate_pairs(
    pairs: str | Sequence[str],
    *,
    model: str | Sequence[str] = (),
    adapter: str | Sequence[str] = (),
    columns: Mapping[str, str] = NO_COLUMNS,
    chat_template: str | None = None,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> "dict[str, TwoScores]":
    """Return how often models and adapters prefer the better of two answers, as `tsugiki eval --pairs` does.

    Args:
        pairs: rows with prompt, chosen and rejected, in a format of the training data, or several of them.
        model: as for `evaluate`; so are the other arguments.

    Returns:
        Name -> scores by the log-probability of an answer and by that per token, in the order of the arguments.

    Raises:
        TsugikiError: nothing to evaluate, or the data, a model or an adapter cannot be read.
    """
    from tsugiki.data.read.answers import holds_completions
    from tsugiki.io.progress import ProgressDisplay, quiet_libraries
    from tsugiki.training.score.targets import evaluation_targets, loaded_targets, score_pairs_with_targets

    chosen = evaluation_targets(_list(model), _list(adapter))
    only_pairs = holds_completions(pairs, columns)
    loaded = loaded_targets(chosen, allow_base_mismatch, trust_remote_code, chat_template, only_pairs=only_pairs)
    results = score_pairs_with_targets(loaded, pairs, columns, [], ProgressDisplay())
    with quiet_libraries():
        return dict(zip(map(str, chosen), results, strict=True))


def generate(
    prompt: str | Sequence[Mapping[str, str]],
    *,
    model: str | None = None,
    adapter: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.7,
    top_p: float = 0.9,
    repetition_penalty: float | None = None,
    seed: int = 0,
    json_schema: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    raw: bool = False,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> str:
    """Continue a text, or answer in a conversation, with a model or with an adapter on its base.

    Args:
        prompt: the text, which is the user's turn for a chat model and for an adapter that has learned conversations
            (as in `tsugiki generate`); or the messages of a conversation, such as [{"role": "user", "content": "…"}].
        model: the name of the model. None: the base that the adapter's files name.
        adapter: folder of an adapter, or its name in the library; None: the model alone.
        max_new_tokens: largest number of new tokens.
        temperature: divides the logits; 0 always takes the most probable token.
        top_p: sample from the most probable tokens that together have this probability.
        repetition_penalty: above 1, such as 1.2, tokens that have occurred become less probable. None: that of the
            model's generation settings, which is 1.15 for 'embedded'.
        seed: the same seed gives the same text.
        json_schema: what is written is JSON that this JSON schema allows; needs the extra `serve`.
        chat_template: for conversations, as in the settings of a run; None: that of the adapter or the model.
        raw: continue a text as it is, also for a chat model.
        allow_base_mismatch: load an adapter that was trained on another base.
        trust_remote_code: run Python code that the model brings, with all your rights.

    Returns:
        The new text, without the prompt.

    Raises:
        TsugikiError: neither a model nor an adapter is given, one of them cannot be read, or the prompt is too long.
    """
    from tsugiki.generation.generate import generate_text
    from tsugiki.generation.grammar import json_grammar
    from tsugiki.generation.prompt import as_prompt, learned_conversations
    from tsugiki.generation.sampling import Sampling
    from tsugiki.io.progress import quiet_libraries
    from tsugiki.training.score.targets import evaluation_targets, loaded_targets

    targets = evaluation_targets(_list(model), _list(adapter))[-1:]
    with quiet_libraries():
        _, loaded, tokenizer = next(loaded_targets(targets, allow_base_mismatch, trust_remote_code, chat_template))
        if isinstance(prompt, str):
            as_turns = not raw and learned_conversations(targets[0].adapter, tokenizer)
            turns = as_prompt(prompt, as_turns, None)
        else:
            turns = [Message(turn["role"], turn["content"]) for turn in prompt]
        grammar = None if json_schema is None else json_grammar(json_schema)
        sampling = Sampling(temperature, top_p, seed, repetition_penalty, grammar=grammar)
        return generate_text(loaded, tokenizer, turns, max_new_tokens, sampling)


def _list(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else [*(names or ())]
