"""The commands as functions, for notebooks and scripts. The flags of the command line are made from their parameters.

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
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from tsugiki.annotations import Flag, Names
from tsugiki.data.read.schemas import NO_COLUMNS
from tsugiki.data.records import AssistantTurns, Completion, Message, Reading
from tsugiki.dtypes import LoadDtype
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

if TYPE_CHECKING:
    from tsugiki.preference.sampling import AnswerCounts
    from tsugiki.report.evaluations import Results
    from tsugiki.training.record.run_record import RunRecord
    from tsugiki.training.run.preview import Preview

_SAMPLING = "Sampling"

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
    from tsugiki.training.run.reward import train_by_reward
    from tsugiki.training.run.stages import train as train_run

    config = validated(RunConfig, settings, None)
    with quiet_libraries():
        record = (train_by_reward if config.reward else train_run)(config, resume=resume)
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


@partial(_with_settings_of_a_run, without="out")
def pairs(*, out: str, **settings: Any) -> "AnswerCounts":
    """Sample answers to all prompts, score them, and write the best and the worst to each, as `tsugiki pairs` does.

    Args:
        out: file to write, such as pairs.jsonl: data for `preference`. Beside it, pairs.answers.jsonl gets all answers
            with their scores.
        settings: the settings of a run with a `reward`, listed below; nothing is held out unless they say so.

    Returns:
        Counts of prompts, answers and pairs, and the mean reward.

    Raises:
        TsugikiError: a rule, the prompts or a model cannot be used, or all answers to each prompt score alike.
    """
    from tsugiki.io.progress import quiet_libraries
    from tsugiki.training.run.reward import write_pairs_once

    config = validated(RunConfig, {"held_out": "none", "validation": "none", **settings, "out": out}, None)
    if not config.reward:
        raise TsugikiError("reward missing: give a rule that scores the answers, such as field:answer")
    with quiet_libraries():
        return write_pairs_once(config, Path(out))


def evaluate(
    data: Names = (),
    *,
    columns: Mapping[str, str] = NO_COLUMNS,
    questions: str | None = None,
    pairs: Names = (),
    model: Names = (),
    adapter: Names = (),
    characters: Annotated[int | None, Flag(least=1)] = None,
    assistant_turns: AssistantTurns = "all",
    max_new_tokens: Annotated[int, Flag(least=1)] = 64,
    chat_template: str | None = None,
    dtype: LoadDtype | None = None,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> "Results":
    """Evaluate models and adapters on the same text, questions or pairs of answers, as `tsugiki eval` does.

    Args:
        data: text to evaluate on: same formats as the data of `tsugiki train`.
        columns: names of columns or fields that differ from those of Tsugiki, such as prompt=title,completion=body.
        questions: instead of `data`, prompts with expected answers: JSON Lines with prompt and expected.
        pairs: instead of `data`, pairs of answers: same formats as the data of `tsugiki train --preference`.
        model: model: 'embedded', a folder, a GGUF file, or a hub id.
        adapter: adapter: a folder or a name in the library. Its base is `model`, if exactly one is given, otherwise the
            base that the adapter names; without `model`, this base is evaluated as well.
        characters: approximate number of characters to evaluate, in whole windows. Default: all.
        assistant_turns: which answers of a conversation are scored: all, or the last one.
        max_new_tokens: largest number of tokens of an answer to `questions`.
        chat_template: chat template for conversations and for prompts with completions: a Jinja file, default (a plain
            one) or none. Default: that of the adapter, or of the tokenizer.
        dtype: dtype of the base's weights. Default: int8 or nf4 if the adapter was trained on such a base, otherwise
            fp32.
        allow_base_mismatch: load an adapter that was trained on another base.
        trust_remote_code: run Python code that the model brings, with all your rights.

    Returns:
        Name -> result, in the order of the arguments: models alone, then adapters (each after its base, if there is no
        `model`). Results of texts have losses, of questions answers, and of pairs two scores: by the log-probability of
        an answer, and by that per token. A notebook shows them as a table.

    Raises:
        TsugikiError: nothing to evaluate, or the data, a model or an adapter cannot be read.
    """
    from tsugiki.data.read.answers import holds_completions
    from tsugiki.data.read.files import record_kinds
    from tsugiki.io.progress import ProgressDisplay, quiet_libraries
    from tsugiki.report.evaluations import Results, answers_table, evaluation_table
    from tsugiki.report.pairs import scores_table
    from tsugiki.training.score import targets as of_targets
    from tsugiki.training.score.questions import read_questions

    if [bool(data), questions is not None, bool(pairs)].count(True) != 1:
        raise TsugikiError(
            "give one of --data, a text to evaluate on, --questions, prompts with expected answers, and --pairs, two "
            "answers to each prompt"
        )
    chosen = of_targets.evaluation_targets(_list(model), _list(adapter))
    progress, notes = ProgressDisplay(), list[str]()
    if dtype is None and (dtype := of_targets.dtype_of(chosen)) != "fp32":
        notes.append(
            _("the base is in {dtype}, as when an adapter was trained; alone it is in fp32 ({flag:dtype})", dtype=dtype)
        )
    loaded = partial(of_targets.loaded_targets, chosen, allow_base_mismatch, trust_remote_code, chat_template, dtype)
    with quiet_libraries():
        if questions is not None:
            asked = read_questions(Path(questions))
            targets = loaded(each_alone=all(isinstance(question.prompt, str) for question in asked))
            answers = of_targets.answer_with_targets(targets, asked, max_new_tokens, progress)
            return Results(chosen, answers, answers_table, notes)
        if pairs:
            targets = loaded(only_pairs=holds_completions(pairs, columns))
            scores = of_targets.score_pairs_with_targets(targets, pairs, columns, notes, progress)
            return Results(chosen, scores, scores_table, notes)
        targets, reading = loaded(only_pairs=record_kinds(data, columns) == {Completion}), Reading()
        evaluated = of_targets.evaluate_targets(
            targets, data, assistant_turns, characters, progress, columns=columns, reading=reading
        )
        results = list(evaluated)
    if characters is not None and results[0].characters > characters:
        message = _(
            "--characters {asked:,} was rounded up to {measured:,}: only whole windows are evaluated",
            asked=characters,
            measured=results[0].characters,
        )
        notes.append(message)
    return Results(chosen, results, evaluation_table, [*reading.notes(), *notes])


def generate(
    prompt: str | Sequence[Mapping[str, str]],
    *,
    model: str | None = None,
    adapter: str | None = None,
    max_new_tokens: Annotated[int, Flag(least=1, group=_SAMPLING)] = 200,
    temperature: Annotated[float, Flag(least=0, group=_SAMPLING)] = 0.7,
    top_p: Annotated[float, Flag(least=0.01, most=1, group=_SAMPLING)] = 0.9,
    repetition_penalty: Annotated[float | None, Flag(least=0.1, most=10, group=_SAMPLING)] = None,
    seed: Annotated[int, Flag(least=0, group=_SAMPLING)] = 0,
    raw: bool = False,
    system: str | None = None,
    json_schema: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    dtype: LoadDtype | None = None,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> str:
    """Continue a text, or answer in a conversation, with a model or with an adapter on its base.

    Args:
        prompt: text to continue, which is the user's turn for a chat model and for an adapter that has learned
            conversations; or the messages of a conversation, such as [{"role": "user", "content": "…"}].
        model: model: 'embedded', a folder, a GGUF file, or a hub id. Default: the base that the adapter names.
        adapter: adapter: a folder, such as that of a run or a checkpoint, or a name in the library.
        max_new_tokens: largest number of new tokens.
        temperature: 0: always the most probable token.
        top_p: sample from the tokens with this total probability.
        repetition_penalty: above 1, such as 1.2: tokens that have occurred become less probable. 1: none. Default: that
            of the model's generation settings, which is 1.15 for 'embedded'.
        seed: the same seed gives the same text.
        raw: continue prompts as plain text, although the adapter has learned conversations.
        system: system message, for adapters and models that hold conversations.
        json_schema: what is written is JSON that this JSON schema allows; needs the extra `serve`.
        chat_template: chat template for conversations and for prompts with completions: a Jinja file, default (a plain
            one) or none. Default: that of the adapter, or of the tokenizer.
        dtype: dtype of the base's weights. Default: that in which training loads it: int8 or nf4 if the adapter was
            trained on such a base, otherwise bf16 where this machine multiplies it. In fp32 the text depends least on
            the machine and on other prompts.
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
    from tsugiki.training.score.targets import dtype_of_training, evaluation_targets, loaded_targets

    targets = evaluation_targets(_list(model), _list(adapter))[-1:]
    with quiet_libraries():
        dtype = dtype or dtype_of_training(targets)
        _target, loaded, tokenizer = next(
            loaded_targets(targets, allow_base_mismatch, trust_remote_code, chat_template, dtype)
        )
        if isinstance(prompt, str):
            turns = as_prompt(prompt, not raw and learned_conversations(targets[0].adapter, tokenizer), system)
        else:
            first = [Message("system", system)] if system else []
            turns = [*first, *(Message(turn["role"], turn["content"]) for turn in prompt)]
        grammar = None if json_schema is None else json_grammar(json_schema)
        sampling = Sampling(temperature, top_p, seed, repetition_penalty, grammar=grammar)
        return generate_text(loaded, tokenizer, turns, max_new_tokens, sampling)


def _list(names: Names | None) -> list[str]:
    return [names] if isinstance(names, str) else [*(names or ())]
