"""Pairs of a model's own answers, ranked.

`python -m benchmarks.quality.preference_own_answers VERIFIER --texts F --out DIR`

The base answers each prompt six times. A verifier, which is a function of the text, scores the answers; the best one is
chosen and the worst one rejected, unless their scores are equal. For each seed, these runs learn from the pairs, all
with automatic settings:

- one trains on the chosen answers alone,
- the same takes about the processor time of the run with DPO: `--epochs`, never ending early, the last step is kept,
- one run for each loss of `--losses`.

Then each model answers prompts of other works at temperature 0.8, and the same verifier scores them. Intervals are over
prompts, each with the answers of all seeds. The last columns say what the choice costs: the share of different ones
among the sequences of three characters of a text, and the loss of held-out chosen answers, which the base has written
to other prompts. The processor time is that of the run alone, with one thread.

The verifier `polite` counts the sentences with a polite end. The answers continue the first clauses of sentences from
the works of `--texts`, JSON lines with `author`, `text` and `kana`: those of two `--authors` to learn from, and one
sentence of each of other works to judge. What is finished in `--out` is not repeated.
"""

import argparse
import json
import math
import random
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.figures import Figures
from tsugiki.generation.generate import continue_rows
from tsugiki.generation.prompt import prompt_tokens
from tsugiki.generation.sampling import Sampling
from tsugiki.io.json import read_json, write_json
from tsugiki.report.table import Table
from tsugiki.training.record.interval import Score, change, loss_interval
from tsugiki.training.run.stages import train
from tsugiki.training.score.targets import evaluation_targets, loaded_targets
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": ["trained with", "score", "each seed", "beside equal time", "distinct", "chosen, nats a token", "CPU s"],
    "ja": [
        "学習",
        "スコア",
        "シードごと",
        "同じ時間との差",
        "異なり率",
        "良い応答（ナット / トークン）",
        "CPU 時間（秒）",
    ],
}
CHOSEN, EQUAL_TIME = "chosen answers alone", "chosen answers alone, equal time"
_SENTENCE = re.compile(r"([^。！？\n]+)[。！？]")
_POLITE = re.compile(r"(です|ます|でした|ました|ません|でしょう|ましょう|下さい|ください)(か|ね|よ|わ|が|から|な)*$")
_BEGINNING = re.compile(r"(?<=。)([^。、\s「」『』〓※（）〔〕]{5,18}、)[^。\n「」]{6,}。")


def share(text: str, pattern: re.Pattern[str]) -> float:
    """Return the share of the sentences in which the pattern occurs; 0 without a sentence."""
    sentences = _SENTENCE.findall(text)
    return sum(bool(pattern.search(sentence)) for sentence in sentences) / max(len(sentences), 1)


VERIFIERS: dict[str, Callable[[str], float]] = {"polite": partial(share, pattern=_POLITE)}


def main() -> None:
    """Sample, train, judge, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verifier", choices=VERIFIERS)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--texts", type=Path, required=True, help="works whose sentences the answers continue")
    parser.add_argument("--authors", nargs=2, default=["太宰治", "岡本綺堂"], help="of the works to learn from")
    parser.add_argument("--losses", nargs="*", default=["dpo", "simpo likelihood=0", "simpo likelihood=1", "orpo"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--prompts", type=int, nargs=3, default=[160, 30, 48], help="to learn, hold out and judge")
    parser.add_argument("--samples", type=int, nargs=2, default=[6, 3], help="of a prompt, for pairs and for the judge")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer, at most")
    parser.add_argument("--epochs", type=float, default=8, help="that take the time of the run with DPO")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pairs and runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    learned, held_out, judged = _prompts(options)
    for name, prompts, seed in (("pairs", learned, 1000), ("held_out", held_out, 2000)):
        _write_pairs(options, name, prompts, seed)
    base = _judged(options, _of_base(options, "base", judged, options.samples[1], 3000))
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for name in (CHOSEN, EQUAL_TIME, *options.losses):
            found.setdefault(name, []).append(_trained(options, name, seed, judged))
        like = found[EQUAL_TIME]
        rows = [_row("base", [{**base, "loss": like[0]["before"], "seconds": 0.0}], like)]
        rows += [_row(name, found[name], like) for name in (CHOSEN, EQUAL_TIME, *options.losses)]
        print(Table(HEADERS["en"], rows).to_markdown(), flush=True)
    if options.figures:
        command = f"python -m benchmarks.quality.preference_own_answers {shlex.join(sys.argv[1:])}"
        Figures(HEADERS, rows, command).write(options.figures)


def _prompts(options: argparse.Namespace) -> list[list[str]]:
    """Return the prompts to learn from, to hold out, and to judge."""
    of_learned, of_others = _beginnings(options, learned=True), _beginnings(options, learned=False)
    learn, hold_out, judge = options.prompts
    judged = [next(of_others) for _ in range(judge)]
    return [[next(of_learned) for _ in range(learn)], [next(of_others) for _ in range(hold_out)], judged]


def _beginnings(options: argparse.Namespace, learned: bool) -> Iterator[str]:
    """Yield first clauses of sentences, one of each work in turn; of other authors' works, one only."""
    works = [json.loads(line) for line in options.texts.read_text("utf-8").splitlines()]
    chosen = [
        _BEGINNING.findall(work["text"][:20_000])
        for work in works
        if work["kana"] == "modern" and (work["author"] in options.authors) == learned
    ]
    rng = random.Random(0)
    rng.shuffle(chosen)
    for _ in range(4 if learned else 1):
        yield from [rng.choice(clauses) for clauses in chosen if clauses]


def _write_pairs(options: argparse.Namespace, name: str, prompts: Sequence[str], seed: int) -> None:
    """Write the pairs of the base's answers to these prompts, and the chosen answers alone."""
    file, rows = options.out / f"{name}.jsonl", []
    if file.exists():
        return
    answers = _of_base(options, name, prompts, options.samples[0], seed)
    for prompt, texts in zip(prompts, answers, strict=True):
        whole = [text[: text.rfind("。") + 1] for text in texts if "。" in text]
        ranked = sorted((VERIFIERS[options.verifier](text), text) for text in whole)
        if ranked and ranked[0][0] < ranked[-1][0]:
            rows.append({"prompt": prompt, "chosen": ranked[-1][1], "rejected": ranked[0][1]})
    print(f"{name}: {len(rows)} pairs of {len(prompts)} prompts", flush=True)
    alone = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    for path, content in ((options.out / f"{name}.chosen.jsonl", alone), (file, rows)):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), "utf-8")


def _trained(options: argparse.Namespace, name: str, seed: int, judged: Sequence[str]) -> dict[str, Any]:
    """Train and judge, unless that was done before; return the scores, the losses and the seconds."""
    folder = options.out / f"{name} {seed}"
    if not (folder / "judged.json").exists():
        alone = name in (CHOSEN, EQUAL_TIME)
        data, held_out = (options.out / f"{part}{'.chosen' if alone else ''}.jsonl" for part in ("pairs", "held_out"))
        settings: dict[str, Any] = {"model": options.model, "data": str(data), "held_out": str(held_out)}
        settings |= {"held_out_characters": 100_000, "out": str(folder), "seed": seed, "chat_template": "none"}
        if name == EQUAL_TIME:
            settings |= {"epochs": options.epochs, "patience": 0, "keep": "last"}
        elif not alone:
            settings["preference"], _, more = name.partition(" ")
            settings |= {"preference_settings": more} if more else {}
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        before = time.process_time()
        record = train(validated(RunConfig, settings, None))
        seconds = time.process_time() - before
        losses = {"before": record.evaluations[0].loss, "loss": record.evaluations[-1].loss}
        answers = _answers(options, folder, judged, options.samples[1], 3000 + seed)
        write_json(folder / "judged.json", {"seconds": seconds, **losses, **_judged(options, answers)})
    return dict(read_json(folder / "judged.json"))


def _judged(options: argparse.Namespace, answers: list[list[str]]) -> dict[str, Any]:
    """Return the scores of the answers to each prompt, and the share of different sequences of three characters."""
    scores = [[VERIFIERS[options.verifier](text) for text in texts] for texts in answers]
    grams = [[text[at : at + 3] for at in range(len(text) - 2)] for texts in answers for text in texts if len(text) > 2]
    distinct = fmean(len(set(one)) / len(one) for one in grams)
    return {"scores": scores, "distinct": distinct, "answers": answers}


def _of_base(
    options: argparse.Namespace, name: str, prompts: Sequence[str], samples: int, seed: int
) -> list[list[str]]:
    """Return the base's answers to each prompt, which stay in a file."""
    file = options.out / f"{name}.answers.json"
    if not file.exists():
        write_json(file, {"answers": _answers(options, None, prompts, samples, seed)})
    return list(read_json(file)["answers"])


def _answers(
    options: argparse.Namespace, adapter: Path | None, prompts: Sequence[str], samples: int, seed: int
) -> list[list[str]]:
    """Return some answers to each prompt. Each has a seed of its own, so that prompts are independent of each other."""
    target = evaluation_targets([options.model], [str(adapter)] if adapter else [])[-1:]
    _, model, tokenizer = next(loaded_targets(target))
    tokens = [prompt_tokens(model, tokenizer, prompt) for prompt in prompts for _ in range(samples)]
    sampling = Sampling(0.8, 1.0, repetition_penalty=1.0)
    ends = {tokenizer.eos_token_id}.union(*(one.ends for one in tokens))
    seeds = [seed * len(tokens) + place for place in range(len(tokens))]
    more: Any = {"seeds": seeds, "at_once": 96}
    texts = continue_rows(model, tokenizer, [one.ids for one in tokens], options.tokens, sampling, ends, **more)
    return [texts[first : first + samples] for first in range(0, len(texts), samples)]


def _row(name: str, results: list[dict[str, Any]], like: list[dict[str, Any]]) -> list[str]:
    scores, others = _scores(results), _scores(like)
    low, high = loss_interval(scores) or (math.nan, math.nan)
    found = change(_mean(others), _mean(scores), others, scores)
    shown = "" if found.interval is None else "{:+.0%} [{:+.0%}, {:+.0%}]".format(found.relative, *found.interval)
    return [
        name,
        f"{_mean(scores):.3f} [{low:.3f}, {high:.3f}]",
        ", ".join(f"{_mean(_scores([one])):.3f}" for one in results),
        "" if results is like else shown,
        f"{fmean(one['distinct'] for one in results):.3f}",
        *(
            ", ".join(f"{one[figure]:.{digits}f}" for one in results)
            for figure, digits in (("loss", 3), ("seconds", 0))
        ),
    ]


def _scores(results: Sequence[dict[str, Any]]) -> list[Score]:
    """Return the mean score of the answers to each prompt, of all seeds."""
    prompts = zip(*(one["scores"] for one in results), strict=True)
    return [(fmean(chain(*answers)), 1, 0) for answers in prompts]


def _mean(scores: Sequence[Score]) -> float:
    return fmean(score[0] for score in scores)


if __name__ == "__main__":
    main()
