"""What preference tuning learns: `python -m benchmarks.quality.preference PAIRS HELD_OUT --model M --out DIR`.

For each seed, one run trains on the chosen answers alone, and one for each loss on the pairs; both with automatic
settings, the same number of steps and about as many pairs in a step (a row of the first is half as long). Then all
prefer one of the two answers of the held-out pairs. Runs that are finished in `--out` are not repeated. PAIRS
and HELD_OUT are written first with one of these:

`--revisions OLD NEW`   Two versions of a project's documentation, such as the folders docs of Django 1.8 and 5.2 (BSD
    licence; `pip download --no-deps --no-binary :all: Django==5.2`). A sentence that was revised is a pair: the
    sentence before it is the prompt, the new version is chosen, and the old one rejected. Both name the same code and
    numbers. Each half has as many pairs with a longer chosen answer as with a longer rejected one.
`--editions WORKS`      Works of Aozora Bunko that are there in old and in modern orthography, from `tsugiki aozora`.
    The old version of a sentence is chosen, the modern one rejected, and the prompt is a modern sentence.

A document or work is on one side only.
"""

import argparse
import json
import random
import re
import shlex
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures
from tsugiki import evaluate
from tsugiki.report.table import Table
from tsugiki.training.record.result import PairScores, TwoScores
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.resume import earlier_run
from tsugiki.training.run.stages import train
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": [
        "trained with",
        "seed",
        "kept step",
        "accuracy by sum",
        "per token",
        "by sum, lengths alike",
        "chosen, bits/char",
    ],
    "ja": [
        "学習",
        "シード",
        "採用したステップ",
        "正答率（対数確率の合計）",
        "1 トークンあたり",
        "長さが同程度の組",
        "良い応答（ビット / 文字）",
    ],
}
Pair = dict[str, str]
_MARKUP = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`")
_CODE = re.compile(r"`[^`]*`|\d+")
_SENTENCE = re.compile(r"[^。\s「」〓※][^。\n「」〓※]{5,}。")


def main() -> None:
    """Train, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--revisions", type=Path, nargs=2, metavar=("OLD", "NEW"), help="folders of documentation")
    parser.add_argument("--editions", type=Path, metavar="WORKS", help="output of `tsugiki aozora`")
    parser.add_argument("--most", type=int, default=320, help="pairs in each half that is written")
    parser.add_argument("--model", required=True)
    parser.add_argument("--losses", nargs="*", default=["dpo"], help="such as dpo, or 'simpo likelihood=1'")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--block-size", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    documents: list[list[Pair]] = []
    if options.revisions:
        old, new = options.revisions
        documents = [list(_revised(old / name, new / name)) for name in _documents(new)]
    if options.editions:
        documents = list(_editions(_read(options.editions)))
    for file, pairs in zip((options.pairs, options.held_out), _halves(documents), strict=True) if documents else ():
        _write(file, _balanced(pairs)[: options.most])
    chosen = [_chosen(file, options.out) for file in (options.pairs, options.held_out)]
    records = {}
    for seed in options.seeds:
        records["chosen answers alone", seed] = _run(options, chosen, seed, None)
        for loss in options.losses:
            records[loss, seed] = _run(options, [options.pairs, options.held_out], seed, loss)
    folders = {key: str(options.out / f"{key[0]} {key[1]}") for key in records}
    scores = list(
        evaluate(
            pairs=str(options.held_out), model=options.model, adapter=list(folders.values()), chat_template="none"
        ).values()
    )
    first = next(iter(records.values()))
    rows = [["–", "", "", *_scores(scores[0]), f"{first.evaluations[0].bits_per_char:.3f}"]]
    for ((name, seed), record), found in zip(records.items(), scores[1:], strict=True):
        rows.append(
            [name, str(seed), f"{record.kept_step:,}", *_scores(found), f"{record.evaluations[-1].bits_per_char:.3f}"]
        )
    print(Table(HEADERS["en"], rows).to_markdown())
    print(f"held-out pairs whose longer answer is the chosen one: {scores[0].by_sum.longer_is_chosen:.1%}")
    if options.figures:
        command = f"python -m benchmarks.quality.preference {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _run(options: argparse.Namespace, data: list[Path], seed: int, loss: str | None) -> RunRecord:
    folder = options.out / f"{loss or 'chosen answers alone'} {seed}"
    settings: dict[str, Any] = {
        "model": options.model,
        "data": str(data[0]),
        "held_out": str(data[1]),
        "out": str(folder),
        "chat_template": "none",
        "max_steps": options.steps,
        "batch_size": options.rows,
        "block_size": options.block_size // (1 if loss else 2),
        "eval_steps": -(-options.steps // 4),
        "seed": seed,
        "prompts": _prompts(data[1]),
    }
    if loss:
        settings["preference"], _, more = loss.partition(" ")
        settings |= {"preference_settings": more} if more else {}
    config = validated(RunConfig, settings, None)
    earlier = earlier_run(folder.name, config)
    return earlier if earlier and earlier.status == "finished" else train(config, resume=earlier is not None)


def _scores(scores: TwoScores) -> list[str]:
    matched = scores.by_sum.matched_accuracy
    return [
        _accuracy(scores.by_sum),
        _accuracy(scores.per_token),
        "" if matched is None else f"{matched:.1%} ({scores.by_sum.matched})",
    ]


def _accuracy(scores: PairScores) -> str:
    low, high = scores.accuracy_interval
    return f"{scores.accuracy:.1%} [{low:.1%}, {high:.1%}]"


def _read(file: Path) -> list[Pair]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _write(file: Path, records: list[Pair]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


def _prompts(file: Path) -> list[str]:
    return [pair["prompt"] for pair in _read(file)[:3]]


def _chosen(pairs: Path, out: Path) -> Path:
    """Write the chosen answers as prompts with completions."""
    file = out / f"{pairs.stem}.chosen.jsonl"
    _write(file, [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in _read(pairs)])
    return file


def _halves(documents: list[list[Pair]]) -> tuple[list[Pair], list[Pair]]:
    """Divide the pairs among two halves of about the same size, by document."""
    random.Random(0).shuffle(documents)
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for pairs in sorted(documents, key=len, reverse=True):
        min(halves, key=len).extend(pairs)
    return halves


def _balanced(pairs: list[Pair]) -> list[Pair]:
    """Return pairs in random order, as many with a longer chosen answer as with a longer rejected one."""
    random.Random(0).shuffle(pairs)
    more = [pair for pair in pairs if len(pair["chosen"]) > len(pair["rejected"])]
    less = [pair for pair in pairs if len(pair["chosen"]) < len(pair["rejected"])]
    same = [pair for pair in pairs if len(pair["chosen"]) == len(pair["rejected"])]
    count = min(len(more), len(less))
    balanced = [*more[:count], *less[:count], *same]
    random.Random(1).shuffle(balanced)
    return balanced


def _documents(folder: Path) -> list[Path]:
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.txt"))
    return [path for path in paths if path.parts[0] != "releases"]


def _revised(old: Path, new: Path) -> Iterator[Pair]:
    """Yield the sentences of a document that have another wording in its new version."""
    before, after = _sentences(old), _sentences(new)
    for tag, start, end, first, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        for place in range(max(first, 1), last) if tag == "replace" else ():
            chosen = after[place]
            rejected = max(before[start:end], key=lambda sentence: _similarity(sentence, chosen))
            same_facts = sorted(_CODE.findall(rejected)) == sorted(_CODE.findall(chosen))
            if _similarity(rejected, chosen) >= 0.6 and same_facts and chosen not in before and rejected not in after:
                yield {"prompt": after[place - 1][-120:] + "\n", "chosen": chosen, "rejected": rejected}


def _editions(works: list[dict[str, str]]) -> Iterator[list[Pair]]:
    """Yield the pairs of each work that is there in both orthographies, a dozen at most."""
    texts: dict[tuple[str, str], dict[str, str]] = {}
    for work in works:
        texts.setdefault((work["author"], work["title"]), {})[work["kana"]] = work["text"]
    for editions in texts.values():
        pairs, last = list[Pair](), 0
        modern, old = (_SENTENCE.findall(editions.get(kana, ""))[:400] for kana in ("modern", "old"))
        for before, rejected in pairwise(modern):
            nearby = range(max(0, last - 2), min(len(old), last + 6))
            ratio, place = max(((_ratio(old[one], rejected), one) for one in nearby), default=(0.0, 0))
            if ratio > 0.55:
                last = place
                if ratio < 0.95 and max(len(before), len(rejected)) <= 60:
                    pairs.append({"prompt": before + "\n", "chosen": old[place], "rejected": rejected})
        random.Random(0).shuffle(pairs)
        yield pairs[:12]


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _similarity(one: str, other: str) -> float:
    """Return the share of common words; 0 if only spaces or punctuation differ."""
    if re.sub(r"\W", "", one) == re.sub(r"\W", "", other):
        return 0.0
    return SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def _sentences(file: Path) -> list[str]:
    """Return the sentences of the prose, without markup: not those of code, lists, tables and headings."""
    sentences: list[str] = []
    for block in re.split(r"\n\s*\n", file.read_text("utf-8")) if file.exists() else ():
        lines = [line for line in block.split("\n") if line.strip()]
        indents = {len(line) - len(line.lstrip()) for line in lines}
        text = " ".join(" ".join(lines).split())
        is_prose = len(indents) == 1 and indents <= {0, 4} and re.match(r"[A-Z]", text)
        if not is_prose or re.search(r"[{}<>=|]|~~|--$", text):
            continue
        plain = _MARKUP.sub(r"\1", text).replace("``", "`").replace("::", ":")
        sentences += [part for part in re.split(r"(?<=[.!?:])\s+(?=[A-Z`])", plain) if 20 <= len(part) <= 130]
    return sentences


if __name__ == "__main__":
    main()
