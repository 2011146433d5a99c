"""Several models and adapters, measured on the same windows of the same text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.adapters.format import load_adapter, read_base
from tsugiki.adapters.library import adapter_folder
from tsugiki.base.loading import default_device, load_model, load_tokenizer
from tsugiki.data.records import AssistantTurns
from tsugiki.errors import TsugikiError
from tsugiki.io.progress import ProgressDisplay
from tsugiki.lora.graft import ungraft
from tsugiki.train.evaluation.evaluate import evaluate, read_windows
from tsugiki.train.evaluation.result import Evaluation


@dataclass(frozen=True)
class EvaluationTarget:
    """A base, alone or with an adapter on it."""

    model: str
    adapter: Path | None = None
    called: str = ""
    """How the adapter was named: as a folder, or by its name in the library."""

    def __str__(self) -> str:
        return f"{self.model} + {self.called}" if self.adapter else self.model


def evaluation_targets(models: Sequence[str], adapters: Sequence[str]) -> list[EvaluationTarget]:
    """The models, then each adapter: on the model where only one is given, else on the base that its files name.

    Args:
        models: names of bases.
        adapters: folders, or names in the library.

    Raises:
        TsugikiError: nothing to evaluate, no such adapter, or one that names no base.
    """
    found = [EvaluationTarget(model) for model in models]
    for adapter in adapters:
        folder = adapter_folder(adapter)
        base = models[0] if len(models) == 1 else read_base(folder).name
        if not base:
            raise TsugikiError(f"{adapter} does not say what its base is; give the base alone as --model")
        found.append(EvaluationTarget(base, folder, adapter))
    if not found:
        raise TsugikiError("nothing to evaluate: give --model, --adapter or both, as often as you like")
    return found


def evaluate_targets(
    chosen: Sequence[EvaluationTarget],
    data: str,
    turns: AssistantTurns,
    limit: int | None,
    allow_base_mismatch: bool,
    progress: ProgressDisplay,
) -> Iterator[Evaluation]:
    """The figures of each, in order; a base that comes twice in a row is loaded once.

    Args:
        chosen: from `evaluation_targets`.
        data: as in a run's config.
        turns: which of an assistant's turns are scored.
        limit: at most about so many characters.
        allow_base_mismatch: load an adapter that was trained on another base.
        progress: where to show it.

    Raises:
        TsugikiError: data, a model or an adapter that cannot be read.
    """
    windows = read_windows(data, limit)
    loaded = ""
    model: Any = None
    tokenizer: Any = None
    for subject in chosen:
        if subject.model != loaded:
            model, tokenizer = load_model(subject.model).to(default_device()), load_tokenizer(subject.model)
            loaded = subject.model
        if subject.adapter:
            load_adapter(model, subject.adapter, allow_base_mismatch=allow_base_mismatch)
        with progress.stage(str(subject), len(windows)) as advance:
            yield evaluate(model, tokenizer, windows, turns, advance)
        if subject.adapter:
            model = ungraft(model)
