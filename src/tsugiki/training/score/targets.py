"""Evaluate several models and adapters on the same windows of the same text, or by the same questions."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tsugiki.adapters.files import named_base
from tsugiki.adapters.library import adapter_folder
from tsugiki.adapters.pretrained import load_adapter
from tsugiki.adapters.saved_tokenizer import saved_chat_template, with_chat_template, with_new_words
from tsugiki.base.loading import default_device, load_model, load_tokenizer
from tsugiki.data.chat import NONE, use_template
from tsugiki.data.encoding import document_end
from tsugiki.data.read.files import Data
from tsugiki.data.read.schemas import NO_COLUMNS, Columns
from tsugiki.data.records import AssistantTurns, Reading
from tsugiki.data.windows import read_windows
from tsugiki.dtypes import LoadDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.document_masks import detect_document_masking, shares_prompts
from tsugiki.fast.paths import use_fast_paths, use_plain_paths
from tsugiki.io.cache import cache_folder
from tsugiki.io.progress import ProgressDisplay
from tsugiki.lora.graft import ungraft
from tsugiki.model.context import context_length
from tsugiki.preference.pairs import AnswerRows, open_preferences, pack_preferences
from tsugiki.training.record.result import Answers, Evaluation, TwoScores
from tsugiki.training.record.run_record import read_record
from tsugiki.training.score.evaluate import evaluate, score_answers, scores_of
from tsugiki.training.score.questions import Question, answer_questions
from tsugiki.training.tools.processes import start_accelerator

_PAIR_ROW = 512  # tokens of a row of answers, or more for longer pairs


@dataclass(frozen=True)
class EvaluationTarget:
    """A model to evaluate, alone or with an adapter."""

    model: str
    """Name of the model."""
    adapter: Path | None = None
    """Folder of the adapter."""
    adapter_name: str = ""
    """The adapter as the user has named it: a folder, or a name in the library."""

    def __str__(self) -> str:
        return f"{self.model} + {self.adapter_name}" if self.adapter else self.model


LoadedTarget: TypeAlias = tuple[EvaluationTarget, Any, Any]
"""A target, its model and its tokenizer."""


def evaluation_targets(models: Sequence[str], adapters: Sequence[str]) -> list[EvaluationTarget]:
    """Return the models alone, then each adapter on its base.

    The base of an adapter is the model if exactly one is given, otherwise the base that the adapter's files name.
    Without models, the base alone comes before its first adapter. Adapters are folders, or names in the library.
    """
    found = [EvaluationTarget(model) for model in models]
    for adapter in adapters:
        folder = adapter_folder(adapter)
        base = models[0] if len(models) == 1 else named_base(folder)
        if not base:
            raise TsugikiError("{adapter} does not name its base; give the base as the only --model", adapter=adapter)
        if not models and EvaluationTarget(base) not in found:
            found.append(EvaluationTarget(base))
        found.append(EvaluationTarget(base, folder, adapter))
    if not found:
        raise TsugikiError("nothing to evaluate: give --model, --adapter or both; each can be repeated")
    return found


def evaluate_targets(
    loaded: Iterable[LoadedTarget],
    data: Data,
    turns: AssistantTurns,
    limit: int | None,
    progress: ProgressDisplay,
    *,
    columns: Columns = NO_COLUMNS,
    reading: Reading | None = None,
) -> Iterator[Evaluation]:
    """Evaluate each target, from `loaded_targets`, in order, and yield its evaluation.

    `limit` is the approximate number of characters to evaluate (None: all); `reading` collects notes about the files.
    The data are read before the first target is loaded.
    """
    windows = read_windows(data, limit, columns, reading)
    for target, model, tokenizer in loaded:
        with progress.stage(str(target), len(windows)) as advance:
            yield evaluate(model, tokenizer, windows, turns, advance)


def answer_with_targets(
    loaded: Iterable[LoadedTarget], questions: Sequence[Question], max_new_tokens: int, progress: ProgressDisplay
) -> Iterator[Answers]:
    """Let each target, from `loaded_targets`, answer the questions in order, and yield its answers."""
    for target, model, tokenizer in loaded:
        with progress.stage(Path(str(target)).name, len(questions)) as advance:
            yield answer_questions(model, tokenizer, questions, max_new_tokens, advance)


def score_pairs_with_targets(
    loaded: Iterable[LoadedTarget], data: Data, columns: Columns, notes: list[str], progress: ProgressDisplay
) -> Iterator[TwoScores]:
    """Score pairs of answers with each target, from `loaded_targets`, in order, and yield its scores.

    `notes` gets those about the data. The pairs must be such that every target can score all of them.
    """
    for target, model, tokenizer in loaded:
        with progress.stage(str(target), None):
            preferences = open_preferences(data, tokenizer, cache_folder("tokens"), columns)
            store, rows = preferences.store, preferences.usable
            if preferences.size != 2:
                raise TsugikiError("--pairs needs two answers to each prompt: chosen and rejected")
            notes += [note for note in preferences.notes() if note not in notes]
            longest = int((store.offsets[1:] - store.offsets[:-1]).max())
            if longest > context_length(model):
                raise TsugikiError(
                    "an answer with its prompt has {tokens:,} tokens, and the context of {model} is {context:,}",
                    tokens=longest,
                    model=target.model,
                    context=context_length(model),
                )
            size = max(_PAIR_ROW, int(np.diff(store.offsets[::2])[rows].max()))
            masking = detect_document_masking(model, size)
            shared = shares_prompts(model, masking, size)
            blocks, _too_long = pack_preferences(preferences, rows, size, document_end(tokenizer), shared)
            packed = AnswerRows(preferences, blocks, apart=masking == "separate_rows")
            values = score_answers(model, packed, masking, start_accelerator(model.device.type))
        by_sum = scores_of(packed, lambda answers: answers.log_probabilities, values)
        yield TwoScores(by_sum=by_sum, per_token=scores_of(packed, lambda answers: answers.per_token, values))


def loaded_targets(
    chosen: Sequence[EvaluationTarget],
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    dtype: LoadDtype | None = None,
    *,
    only_pairs: bool = False,
    each_alone: bool = False,
) -> Iterator[LoadedTarget]:
    """Yield each target with its model and tokenizer, which can be used until the next target is yielded.

    A model that occurs twice in succession is loaded once.

    Without a `chat_template`, each target has its own, and a model that has none takes that of the first adapter. With
    `only_pairs`, prompts with completions are all that is evaluated: adapters without a chat template learned them as
    plain text, so by default no template is used for these. `each_alone`: so it is with texts as prompts, but each
    target is asked as if no other stood beside it. The `dtype` is that of the models' weights (None: see
    `dtype_of`).
    """
    saved = [saved_chat_template(target.adapter) for target in chosen if target.adapter]
    template = None if each_alone else next((template for template in saved if template is not None), None)
    if only_pairs and saved and template is None:
        chat_template = chat_template or NONE
    loader = TargetLoader(allow_base_mismatch, trust_remote_code, chat_template, template, dtype or dtype_of(chosen))
    for target in chosen:
        if each_alone and chat_template is None:
            is_plain = target.adapter is not None and saved_chat_template(target.adapter) is None
            loader.chat_template = NONE if is_plain else None
        yield target, *loader.use(target)


_FEW_BITS: tuple[LoadDtype, ...] = ("int8", "nf4", "nf4-int8")


def dtype_of(chosen: Sequence[EvaluationTarget], otherwise: LoadDtype = "fp32") -> LoadDtype:
    """Return the dtype of the base that the first adapter was trained on if it was quantised, or else `otherwise`.

    Such a base was perhaps too large for memory in another dtype, and the adapter fits it best.
    """
    for target in chosen:
        with suppress(TsugikiError):  # not the folder of a run
            trained_on = read_record(target.adapter).resolved_settings.get("base_dtype") if target.adapter else None
            if trained_on in _FEW_BITS:
                return _FEW_BITS[_FEW_BITS.index(trained_on)]
    return otherwise


def dtype_of_training(chosen: Sequence[EvaluationTarget]) -> LoadDtype:
    """Return the dtype in which training loads the base of these targets; what only writes text uses it, too."""
    return dtype_of(chosen, preferred_compute_dtype())


@dataclass
class TargetLoader:
    """One base model in memory, with one adapter at a time; the settings are as for `loaded_targets`."""

    allow_base_mismatch: bool
    trust_remote_code: bool
    chat_template: str | None = None
    template_of_base: str | None = None
    """For a base that has no chat template."""
    dtype: LoadDtype = "fp32"
    _name: str = field(default="", init=False)  # of the base that is loaded
    _model: Any = field(default=None, init=False)
    _tokenizer: Any = field(default=None, init=False)
    _has_adapter: bool = field(default=False, init=False)

    def use(self, target: EvaluationTarget) -> tuple[Any, Any]:
        """Load a target instead of the one before, and return its model and tokenizer."""
        self._remove_adapter()
        if target.model != self._name:
            model = load_model(target.model, self.dtype, trust_remote_code=self.trust_remote_code)
            self._model = model.to(default_device())
            self._tokenizer = load_tokenizer(target.model, trust_remote_code=self.trust_remote_code)
            self._tokenizer.chat_template = self._tokenizer.chat_template or self.template_of_base
            self._name = target.model
        tokenizer = self._tokenizer
        if target.adapter:
            tokenizer = with_new_words(self._model, tokenizer, target.adapter)
            if tokenizer is not self._tokenizer:
                self._name = ""  # new words are no part of the base
            load_adapter(self._model, target.adapter, allow_base_mismatch=self.allow_base_mismatch)
            self._has_adapter = True
        use_fast_paths(self._model)
        shown = with_chat_template(tokenizer, target.adapter) if target.adapter else copy.copy(tokenizer)
        use_template(shown, self.chat_template)
        return self._model, shown

    def _remove_adapter(self) -> None:
        if self._model is not None:
            use_plain_paths(self._model)
        if self._has_adapter:
            self._model, self._has_adapter = ungraft(self._model), False
