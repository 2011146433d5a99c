"""What a run could keep, by step and strength: `python -m benchmarks.quality.trajectories TEXTS --out DIR`.

TEXTS is a folder of JSONL files: of each text NAME, `NAME.train.jsonl` is learned, the documents of `NAME.valid.jsonl`
choose, and those of `NAME.test.jsonl` judge. (`benchmarks.quality.default_texts --aozora` writes them.) A run with
automatic settings, that does not end early, scores both after each eighth of its steps with the whole and with half
of its update. From these scores follows what each rule of `training.choose.decisions`, and others, would have kept,
also if it saw only two or five of the documents. The figures are the loss on the documents that judge, in percent
above the lowest one that any step and strength of the run has there: mean and largest over the texts.

Runs that are finished in `--out` are not repeated.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figures
from tsugiki.data.encoding import encode_records
from tsugiki.data.windows import evenly_spread, read_windows
from tsugiki.io.json import read_json, write_json
from tsugiki.lora.hold import disable_adapter
from tsugiki.report.table import Table
from tsugiki.training.choose.decisions import lowest_of_parabola, multiply_update
from tsugiki.training.model.trainable import restore_values, trained_values
from tsugiki.training.record.interval import change_interval
from tsugiki.training.run.stages import prepared
from tsugiki.training.score.evaluate import TokenSequence, score_sequences
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated
from tsugiki.training.step.loop import Callback, TrainingLoop

HEADERS = {
    "en": ["what is kept", "2 documents choose", "5 documents", "all"],
    "ja": ["残すもの", "2 文書で選択", "5 文書", "すべて"],
}
LOOKS = 8
WINDOWS = {"valid": 4, "test": 8}  # of each document
DRAWS = 6  # of two or five documents

Look = dict[str, Any]
"""The step, the strength, and the NLL of each window of both parts."""


def main() -> None:
    """Train, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--names", nargs="*", help="only these texts")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--factor", type=float, default=1.0, help="on the automatic learning rate")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    files = options.texts.glob("*.train.jsonl")
    names = options.names or sorted(path.name.removesuffix(".train.jsonl") for path in files)
    above: dict[str, dict[int, list[float]]] = {}
    for name in names:
        found = _trajectory(options, name)
        bits = [_bits(look, found, "test") for look in found["looks"]]
        base, best = bits[0], min(bits)
        print(f"{name}: base {base:.3f}, lowest {best:.3f} ({best / base - 1:+.2%})", flush=True)
        for rule, by_documents in _rules(found, best).items():
            for documents, percent in by_documents.items():
                above.setdefault(rule, {}).setdefault(documents, []).append(percent)
    rows = [
        [rule, *(f"{np.mean(values):.2f} (at most {max(values):.2f})" for values in by_documents.values())]
        for rule, by_documents in above.items()
    ]
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.figures:
        Figures(HEADERS, rows, f"python -m benchmarks.quality.trajectories {shlex.join(sys.argv[1:])}").write(
            options.figures
        )


def _trajectory(options: argparse.Namespace, name: str) -> dict[str, Any]:
    file = options.out / f"{name} {Path(options.model).name} {options.factor:g} {options.seed}.json"
    if not file.exists():
        settings = {
            "model": options.model,
            "data": str(options.texts / f"{name}.train.jsonl"),
            "held_out": str(options.texts / f"{name}.test.jsonl"),
            "validation": "none",
            "seed": options.seed,
            "out": str(options.out / f"{name} {options.factor:g} {options.seed}"),
        }
        run = prepared(validated(RunConfig, settings, None))
        loop = run.loop(replace(run.ready.choices, learning_rate=options.factor * run.ready.choices.learning_rate))
        parts = {kind: _sequences(run, options.texts / f"{name}.{kind}.jsonl", most) for kind, most in WINDOWS.items()}
        looks = _Looks({kind: sequences for kind, (sequences, _windows) in parts.items()})
        loop.callbacks.append(looks)
        loop.run()
        windows = {kind: of_part for kind, (_sequences, of_part) in parts.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"looks": looks.found, "windows": windows, "steps": loop.steps})
    return read_json(file)


def _sequences(run: Any, file: Path, count: int) -> tuple[list[TokenSequence], list[list[int]]]:
    """Return the windows of a part, each as a sequence of its own, with their documents and characters."""
    by_document: dict[int, list[Any]] = {}
    for window in read_windows(file):
        by_document.setdefault(window.document, []).append(window)
    windows = [window for same in by_document.values() for window in evenly_spread(same, count)]
    encoded = encode_records(run.base.tokenizer, [window.record for window in windows], "all")
    sequences = [
        TokenSequence(torch.tensor(one.ids), torch.tensor(one.loss_mask), number) for number, one in enumerate(encoded)
    ]
    return sequences, [[window.document, len(window.record.text)] for window in windows]


class _Looks(Callback):
    """Scores both parts with the base, and with the whole and half of the update during the run."""

    def __init__(self, parts: dict[str, list[TokenSequence]]) -> None:
        self.parts, self.found = parts, list[Look]()

    def _look(self, loop: TrainingLoop, strength: float) -> None:
        scores = {kind: score_sequences(loop.model, sequences) for kind, sequences in self.parts.items()}
        nll = {kind: [values[number] for number in range(len(values))] for kind, values in scores.items()}
        self.found.append({"step": loop.progress.step, "strength": strength, **nll})

    def on_train_begin(self, loop: TrainingLoop) -> None:
        with disable_adapter(loop.model):
            self._look(loop, 0)

    def on_step_end(self, loop: TrainingLoop) -> None:
        step, total, count = loop.progress.step, loop.steps, min(LOOKS, loop.steps)
        if step * count // total == (step - 1) * count // total:
            return
        self._look(loop, 1)
        trained = trained_values(loop.model)
        multiply_update(loop.model, 0.5)
        self._look(loop, 0.5)
        restore_values(loop.model, trained)


def _bits(look: Look, found: dict[str, Any], part: str, documents: set[int] | None = None) -> float:
    """Return the bits per character of a part, or of some of its documents."""
    pairs = zip(look[part], found["windows"][part], strict=True)
    chosen = [(nll, size) for nll, (document, size) in pairs if documents is None or document in documents]
    return float(sum(nll for nll, _size in chosen) / math.log(2) / sum(size for _nll, size in chosen))


def _scores(look: Look, found: dict[str, Any], documents: set[int]) -> list[tuple[float, int, int]]:
    """Return the scores of some of the documents that choose."""
    pairs = list(zip(look["valid"], found["windows"]["valid"], strict=True))
    scores = []
    for document in sorted(documents):
        same = [(nll, size) for nll, (number, size) in pairs if number == document]
        characters = sum(size for _nll, size in same)
        scores.append((sum(nll for nll, _size in same), characters, characters))
    return scores


def _at(look: Look, base: Look, half: Look, s: float) -> Look:
    """Return a look at another strength, on the parabola through three of them."""
    weights = ((1 - s) * (1 - 2 * s), 4 * s * (1 - s), s * (2 * s - 1))
    parts = {part: np.dot(weights, [one[part] for one in (base, half, look)]).tolist() for part in WINDOWS}
    return {"step": look["step"], "strength": s, **parts}


def _rules(found: dict[str, Any], best: float) -> dict[str, dict[int, float]]:
    """Return rule -> number of documents -> percent above the lowest loss on the documents that judge."""
    everything = sorted({document for document, _size in found["windows"]["valid"]})
    kept: dict[str, dict[int, float]] = {}
    for place, count in enumerate((2, 5, len(everything))):
        draws = [everything]
        if count < len(everything):
            generators = map(np.random.default_rng, range(DRAWS))
            draws = [generator.choice(everything, count, replace=False).tolist() for generator in generators]
        values: dict[str, list[float]] = {}
        for documents in draws:
            for rule, look in _kept(found, set(documents)):
                values.setdefault(rule, []).append(100 * (_bits(look, found, "test") / best - 1))
        for rule, percents in values.items():
            kept.setdefault(rule, {})[place] = float(np.mean(percents))
    return kept


def _kept(found: dict[str, Any], documents: set[int]) -> Iterator[tuple[str, Look]]:
    """Yield what each rule keeps if these documents choose."""
    base, *later = found["looks"]
    whole, half = ([look for look in later if look["strength"] == strength] for strength in (1, 0.5))
    loss: Callable[[Look], float] = partial(_bits, found=found, part="valid", documents=documents)

    def is_lower(one: Look, other: Look) -> bool:
        interval = change_interval(_scores(other, found, documents), _scores(one, found, documents))
        return interval is not None and interval[1] < 0

    lowest = min(whole, key=loss)
    best_of_parabolas = []
    for one, same in zip(whole, half, strict=True):
        strength = lowest_of_parabola(loss(base), loss(same), loss(one))
        best_of_parabolas.append(_at(one, base, same, strength))
    chosen = min(best_of_parabolas, key=loss)
    yield "the last step", whole[-1]
    near = [one for one in whole if not is_lower(lowest, one)]
    yield "the last step that is not certainly above the lowest one", near[-1]
    yield "the lowest step", min([base, lowest], key=loss)
    yield "step and strength, if certainly below the lowest step", chosen if is_lower(chosen, lowest) else lowest
    yield "the last step, at its strength", best_of_parabolas[-1]
    yield "step and strength with the lowest loss (the rule)", chosen


if __name__ == "__main__":
    main()
