"""Whether pairs teach an author's style: `python -m benchmarks.author_pairs WORKS AUTHOR --others OTHER … --out DIR`.

WORKS is the output of `tsugiki aozora`. A pair has 40 tokens of a work as its prompt, the author's next 40 as the
chosen answer, and 40 of the base as the rejected one. Each run trains on some works of the author; on others, the bits
per character are measured, and contexts are continued. A judge, logistic regression on sequences of one to three
characters, has learned to tell the author's works from those of the other authors; it has seen none of the works that
are measured. All runs end with their last step, so that the table shows what a loss does. Runs that are finished in
`--out` are not repeated.
"""

import argparse
import json
import random
import shlex
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.figures import Figures
from tsugiki import evaluate
from tsugiki.base import load_model, load_tokenizer
from tsugiki.generation import Sampling, continue_rows
from tsugiki.report.table import Table
from tsugiki.training.config import RunConfig
from tsugiki.training.config_files import validated
from tsugiki.training.load_targets import evaluation_targets, loaded_targets
from tsugiki.training.resume import earlier_run
from tsugiki.training.run import train

HEADERS = {
    "en": ["trained with", "rate", "unseen works, bits/char", "judge: the author's", "distinct pairs of characters"],
    "ja": ["学習方法", "学習率", "学習に使わない作品（ビット/文字）", "判定：著者の文章らしさ", "異なる 2 文字の割合"],
}
TOKENS = 40  # of a context, and of its continuation
HASHES = 1 << 14


class Method(NamedTuple):
    """How a run trains."""

    loss: str | None
    """None: on the author's text alone."""
    factor: float = 1
    """On the automatic learning rate of training on texts."""
    likelihood: float | None = None

    def __str__(self) -> str:
        likelihood = "" if self.likelihood is None else f", likelihood {self.likelihood:g}"
        return f"{self.loss or 'the text alone'}{likelihood}, rate × {self.factor:g}"


METHODS = (
    Method(None),
    Method("dpo"),
    Method("dpo", likelihood=0),
    Method("dpo", 0.1, likelihood=0),
    Method("orpo"),
    Method("simpo"),
    Method("simpo", 0.1),
)


def main() -> None:
    """Train, judge, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", type=Path)
    parser.add_argument("author")
    parser.add_argument("--kana", default="old")
    parser.add_argument("--others", nargs="+", required=True, help="authors that the judge compares with")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    works = [json.loads(line) for line in options.works.read_text("utf-8").splitlines()]
    learned, judged, unseen = _thirds(works, options.author, options.kana)
    others = [text for name in options.others for text in _thirds(works, name, None)[0][:12]]
    model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    unseen_file = options.out / "unseen.jsonl"
    _write(unseen_file, [{"text": text[:6000]} for text in unseen[:3]])
    pairs_file = options.out / "pairs.jsonl"
    if not pairs_file.exists():
        windows = _windows(learned, tokenizer, options.pairs)
        answers = continue_rows(model, tokenizer, [context for context, _ in windows], TOKENS, _sampling(), ())
        texts = [(tokenizer.decode(context), tokenizer.decode(answer)) for context, answer in windows]
        rows = [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            for (prompt, chosen), rejected in zip(texts, answers, strict=True)
        ]
        _write(pairs_file, rows)
        _write(options.out / "text.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    judge = Judge([*_pieces(judged)], [*_pieces(others)])
    automatic = _run(METHODS[0], options, None)
    runs = {method: _run(method, options, automatic) for method in METHODS}
    folders = [str(options.out / str(method)) for method in METHODS]
    contexts = _windows(unseen, tokenizer, options.contexts)
    own = [tokenizer.decode(answer) for _, answer in contexts]
    rows = [[options.author, "", "", *_style(own, judge)]]
    bits = [
        result.bits_per_char for result in evaluate(str(unseen_file), model=options.model, adapter=folders).values()
    ]
    targets = loaded_targets(evaluation_targets([options.model], folders))
    names = ["–", *map(str, METHODS)]
    for name, value, (_, one, _tokenizer) in zip(names, bits, targets, strict=True):
        texts = continue_rows(one, tokenizer, [context for context, _ in contexts], TOKENS, _sampling(), ())
        rate = next((f"{rate:.2g}" for method, rate in runs.items() if str(method) == name), "")
        rows.append([name, rate, f"{value:.3f}", *_style(texts, judge)])
        print(name, *texts[:3], sep="\n")
    print(Table(HEADERS["en"], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.author_pairs {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


class Judge:
    """Logistic regression on sequences of one to three characters: whether a text is the author's."""

    def __init__(self, own: list[str], others: list[str]) -> None:
        """Learn from pieces of the author's texts and of those of others; both kinds count alike."""
        features = torch.stack([*map(_features, own), *map(_features, others)])
        labels = torch.tensor([1.0] * len(own) + [0.0] * len(others))
        counts = torch.tensor([1 / len(own)] * len(own) + [1 / len(others)] * len(others))
        self.weights = torch.zeros(HASHES, requires_grad=True)
        self.bias = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weights, self.bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores = features @ self.weights + self.bias
            value = F.binary_cross_entropy_with_logits(scores, labels, counts, reduction="sum")
            value = value + 1e-3 * self.weights.square().sum()
            value.backward()
            return value

        optimizer.step(loss)

    @torch.no_grad()
    def __call__(self, text: str) -> float:
        """Return the probability that a text is the author's."""
        return torch.sigmoid(_features(text) @ self.weights + self.bias).item()


def _features(text: str) -> Tensor:
    """Return the counts of sequences, by their hashes, with a length of 1."""
    text = "".join(text.split())
    pieces = [text[start : start + size] for size in (1, 2, 3) for start in range(len(text) - size + 1)]
    counts = torch.bincount(torch.tensor([crc32(piece.encode()) % HASHES for piece in pieces]), minlength=HASHES)
    return F.normalize(counts.float().sqrt(), dim=0)


def _style(texts: list[str], judge: Judge) -> list[str]:
    """Return the mean of the judge with its 95 % interval, and how many pairs of characters differ in a text."""
    values = torch.tensor([judge(text) for text in texts])
    error = 1.96 * values.std().item() / len(texts) ** 0.5
    distinct = [len({*pairwise(text)}) / max(1, len(text) - 1) for text in texts]
    return [f"{values.mean().item():.2f} ±{error:.2f}", f"{sum(distinct) / len(distinct):.2f}"]


def _run(method: Method, options: argparse.Namespace, automatic: float | None) -> float:
    """Train, or take an earlier run; return its learning rate. `automatic` is that of training on the text alone."""
    settings: dict[str, Any] = {
        "model": options.model,
        "data": str(options.out / ("pairs.jsonl" if method.loss else "text.jsonl")),
        "out": str(options.out / str(method)),
        "max_steps": options.steps,
        "batch_size": 2,
        "block_size": 512 if method.loss else 256,
        "validation": "none",
        "keep": "last",
        "eval_steps": options.steps,
    }
    if method.loss and automatic:
        settings["learning_rate"] = automatic * method.factor
    if method.loss:
        settings["preference"] = method.loss
        if method.likelihood is not None:
            settings["preference_settings"] = {"likelihood": method.likelihood}
    config = validated(RunConfig, settings, None)
    earlier = earlier_run(str(method), config)
    if earlier is None or earlier.status != "finished":
        earlier = train(config, resume=earlier is not None)
    return float(earlier.resolved_settings["learning_rate"])


def _thirds(works: list[dict[str, str]], author: str, kana: str | None) -> list[list[str]]:
    """Return an author's works in three parts: to learn from, to teach the judge, and to measure."""
    texts = [
        work["text"]
        for work in works
        if work["author"] == author and kana in (None, work["kana"]) and 2000 <= len(work["text"]) <= 20_000
    ]
    random.Random(0).shuffle(texts)
    return [texts[0::3], texts[1::3], texts[2::3]]


def _windows(texts: list[str], tokenizer: Any, count: int) -> list[tuple[list[int], list[int]]]:
    """Return contexts with what follows them, from places spread over the first texts."""
    windows = []
    for text in texts[:12]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows += [(ids[at : at + TOKENS], ids[at + TOKENS : at + 2 * TOKENS]) for at in range(0, len(ids) - 80, 80)]
    random.Random(0).shuffle(windows)
    return windows[:count]


def _pieces(texts: list[str]) -> Iterable[str]:
    """Yield pieces of about the length of a continuation."""
    for text in texts[:12]:
        yield from (text[start : start + 60] for start in range(0, min(len(text), 6000) - 60, 180))


def _sampling() -> Sampling:
    return Sampling(temperature=0.8, top_p=1, repetition_penalty=1)


def _write(file: Path, records: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")


if __name__ == "__main__":
    main()
