"""What one text teaches about others: `python -m benchmarks.quality.single_texts --aozora WORKS.jsonl --out DIR`.

A run of the embedded model with default settings learns the beginning of one work, and its end judges it. Its adapter
is then scored on three other works of the author, which is what a style is for, and on the text that comes next in the
same work: with the part of the update that the run keeps, with the strength that the end asked for, and with the whole
update. Figures are changes of the bits per character from the base, means and highest over two works of each author
and the three lengths.

The first five authors chose the part that is kept (`decisions.OF_ONE_TEXT`), the others confirm it. The base has
learned no work of theirs in this orthography, or few. The authors of `--known` were in its training data: whatever a
run learns of their works does harm, which is why they chose nothing.

`--stretches` asks instead how much held-out text a percentage needs: the text that comes next is cut into stretches of
some characters, each scored alone. `WORKS.jsonl` is the output of `tsugiki aozora` with the works of all authors.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

import tsugiki
from benchmarks.figures import Figures
from tsugiki.adapters.pretrained import load_adapter
from tsugiki.annotations import PreTrainedModel
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.base.resolve import EMBEDDED
from tsugiki.data.records import Document
from tsugiki.data.windows import WINDOW_CHARACTERS, Window
from tsugiki.lora.hold import base_alone
from tsugiki.report.table import Table
from tsugiki.training.choose.decisions import OF_ONE_TEXT, multiply_update
from tsugiki.training.record.result import Evaluation
from tsugiki.training.record.run_record import read_record
from tsugiki.training.score.evaluate import evaluate

AUTHORS = [
    *(("織田作之助", "modern"), ("森鴎外", "modern"), ("太宰治", "old"), ("永井荷風", "modern"), ("泉鏡花", "modern")),
    *(("芥川龍之介", "old"), ("永井荷風", "old"), ("森鴎外", "old"), ("泉鏡太郎", "old"), ("島崎藤村", "old")),
]
CHOOSING = 5
"""The first authors, with whose works the rule was chosen."""
KNOWN = [("坂口安吾", "modern"), ("寺田寅彦", "modern"), ("豊島与志雄", "modern")]
LENGTHS = (5000, 10_000, 20_000)
_OTHERS, _CHARACTERS, _NEXT = 3, 4096, 2560  # works, characters of each, and characters that come next
_STRETCHES = (16, 32, 64, 128, 256, 512, 1024, 2048)
_STRETCHED = 8192  # characters that are cut into stretches
HEADERS = {
    "en": ["author", "other works: end's strength", "other works: kept", "next: kept", "next: whole update"],
    "ja": ["著者", "ほかの作品：末尾に最適な強さ", "ほかの作品：残した強さ", "続き：残した強さ", "続き：更新量すべて"],
}
STRETCH_HEADERS = {
    "en": ["characters", "says better or worse rightly", "within half of the change", "95 % of errors below"],
    "ja": ["文字数", "良し悪しが正しい割合", "変化の半分以内の割合", "誤差の 95 % 点"],
}
Array = npt.NDArray[np.float64]


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aozora", type=Path, required=True, help="works of all authors, from `tsugiki aozora`")
    parser.add_argument("--known", action="store_true", help="authors that the base has learned, instead")
    parser.add_argument("--stretches", action="store_true", help="how much held-out text a percentage needs, instead")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    works = [json.loads(line) for line in options.aozora.read_text("utf-8").splitlines()]
    authors = KNOWN if options.known else AUTHORS
    headers, rows = HEADERS, list[list[str]]()
    if options.stretches:
        headers, rows = STRETCH_HEADERS, _stretch_rows(works, authors, options.out)
    else:
        rows = _author_rows(works, authors, options.out)
    print(Table(headers["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command = f"python -m benchmarks.quality.single_texts {shlex.join(sys.argv[1:])}"
        Figures(headers, rows, command).write(options.figures)


def _author_rows(works: Sequence[Mapping[str, str]], authors: Sequence[tuple[str, str]], out: Path) -> list[list[str]]:
    """Return a row for each author, with means and highest figures, then the means of the two halves of the authors."""
    found = []
    for author, kana in authors:
        long, others = _chosen(works, author, kana)
        windows = [Window(Document(text, ""), place) for place, text in enumerate(others)]
        changes = []
        for length in LENGTHS:
            for place, work in long:
                changes.append(_changes(out / f"{author} {kana} {place} {length}", work, length, windows))
                print(author, place, length, *map(_percent, changes[-1]), flush=True)
        found.append(changes)
    rows = [
        [f"{author}, {kana} kana", *_cells(changes)] for (author, kana), changes in zip(authors, found, strict=True)
    ]
    halves = {"mean change, authors that chose": found[:CHOOSING], "mean change": found[CHOOSING:]}
    return [*rows, *([name, *_cells(list(chain(*half)))] for name, half in halves.items() if half)]


def _cells(changes: Sequence[Sequence[float]]) -> list[str]:
    columns = list(zip(*changes, strict=True))
    return [f"{fmean(column):+.2%} (at most {max(column):+.2%})" for column in columns]


def _chosen(works: Sequence[Mapping[str, str]], author: str, kana: str) -> tuple[list[tuple[int, str]], list[str]]:
    """Return two long works of an author with their numbers, and pieces of three other works."""
    mine = {work["title"]: work["text"] for work in works if (work["author"], work["kana"]) == (author, kana)}
    long = sorted(title for title, text in mine.items() if len(text) >= max(LENGTHS) + 5000)
    short = sorted(title for title, text in mine.items() if 3000 <= len(text) <= 16_000)
    shuffle = random.Random(0)
    shuffle.shuffle(long)
    shuffle.shuffle(short)
    others = [mine[title][:_CHARACTERS] for title in short[:_OTHERS]]
    pieces = [text[at : at + WINDOW_CHARACTERS] for text in others for at in range(0, len(text), WINDOW_CHARACTERS)]
    return list(enumerate(mine[title] for title in long[:2])), pieces


def _changes(out: Path, work: str, length: int, others: Sequence[Window]) -> list[float]:
    """Return the four changes of a run on the first characters of a work."""
    model, strength = _learned(out, work[:length])
    following = list(_stretches(work[length : length + _NEXT], WINDOW_CHARACTERS))
    with base_alone(model):
        before, before_next = _score(model, others), _score(model, following)
    kept, kept_next = _score(model, others), _score(model, following)
    if not strength:
        return [0.0, 0.0, 0.0, 0.0]
    multiply_update(model, 1 / OF_ONE_TEXT)
    of_end = _score(model, others)
    multiply_update(model, OF_ONE_TEXT / strength)
    whole_next = _score(model, following)
    pairs = [(before, of_end), (before, kept), (before_next, kept_next), (before_next, whole_next)]
    return [after.bits_per_char / start.bits_per_char - 1 for start, after in pairs]


def _learned(out: Path, text: str) -> tuple[PreTrainedModel, float]:
    """Return the base with the adapter of a run on this text, and its strength."""
    data = out.with_suffix(".txt")
    data.parent.mkdir(parents=True, exist_ok=True)
    data.write_text(text, "utf-8")
    if not (out / "run.json").exists() or read_record(out).status != "finished":
        tsugiki.train(model=EMBEDDED, data=str(data), out=str(out))
    return load_adapter(load_model(EMBEDDED), str(out)), read_record(out).strength


def _stretches(text: str, characters: int) -> Iterator[Window]:
    for number, at in enumerate(range(0, len(text) - characters + 1, characters)):
        yield Window(Document(text[at : at + characters], ""), number)


def _score(model: PreTrainedModel, windows: Sequence[Window]) -> Evaluation:
    return evaluate(model, load_tokenizer(EMBEDDED), windows)


def _stretch_rows(works: Sequence[Mapping[str, str]], authors: Sequence[tuple[str, str]], out: Path) -> list[list[str]]:
    """Return a row for each number of characters, means over the works."""
    found: dict[int, list[tuple[float, float, float]]] = {}
    for author, kana in authors:
        for place, work in _chosen(works, author, kana)[0]:
            model, _strength = _learned(out / f"{author} {kana} {place} {LENGTHS[1]}", work[: LENGTHS[1]])
            text = work[LENGTHS[1] : LENGTHS[1] + _STRETCHED]
            for size in _STRETCHES:
                windows = list(_stretches(text, min(size, WINDOW_CHARACTERS)))
                after = _score(model, windows)
                with base_alone(model):
                    before = _score(model, windows)
                found.setdefault(size, []).append(_agreement(before, after, max(1, size // WINDOW_CHARACTERS)))
    return [[f"{size:,}", *_shares(figures)] for size, figures in found.items()]


def _shares(figures: Sequence[tuple[float, float, float]]) -> list[str]:
    right, near, error = (fmean(column) for column in zip(*figures, strict=True))
    return [f"{right:.0%}", f"{near:.0%}", f"{100 * error:.1f} points"]


def _agreement(before: Evaluation, after: Evaluation, together: int) -> tuple[float, float, float]:
    """Return how often stretches say what the whole text says, how often within half of it, and the error of 95 %.

    A stretch is `together` windows.
    """
    count = len(after.documents) // together * together

    def sums(result: Evaluation) -> Array:
        summed: Array = np.array([score[0] for score in result.documents[:count]]).reshape(-1, together).sum(1)
        return summed

    change = after.nll / before.nll - 1
    errors = sums(after) / sums(before) - 1 - change
    right = float(np.mean((errors + change) * change > 0))
    return right, float(np.mean(abs(errors) <= abs(change) / 2)), float(np.percentile(abs(errors), 95))


def _percent(value: float) -> str:
    return f"{value:+.2%}"


if __name__ == "__main__":
    main()
