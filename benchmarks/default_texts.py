"""Write the texts of `benchmarks.defaults`: `python -m benchmarks.default_texts --aozora WORKS.jsonl --out DIR`.

- works of single authors, chosen by a seeded shuffle from the output of `tsugiki aozora`;
- `chat_en`: the English questions and answers of the package chatterbot-corpus 1.3.3 (BSD licence);
- `guides_en`: the prose of some of this project's English guides, a document for each.
"""

import argparse
import json
import random
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import yaml

# Name: author, kana, characters in all, shortest and longest work.
QUESTIONS, GUIDES = 720, 40_000  # records of chat_en, characters of guides_en
AUTHORS = {
    "kyoka": ("泉鏡花", "old", 70_000, 2000, 20_000),
    "kyoka_small": ("泉鏡花", "old", 12_000, 2000, 6000),
    "kafu": ("永井荷風", "old", 120_000, 2000, 20_000),
    "kenji": ("宮沢賢治", "modern", 60_000, 2000, 20_000),
    "oda_small": ("織田作之助", "modern", 20_000, 2000, 6000),
    "mimei": ("小川未明", "modern", 250_000, 1000, 8000),
}
_CODE = re.compile(r"```.*?```", re.DOTALL)


def main() -> None:
    """Write a JSONL file for each text whose source is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aozora", type=Path, help="output of `tsugiki aozora` with the works of all authors")
    parser.add_argument("--guides", type=Path, help="folder of the guides: docs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[dict[str, str]]] = {}
    if options.aozora:
        works = [json.loads(line) for line in options.aozora.read_text("utf-8").splitlines()]
        texts |= {name: _works(works, *choice) for name, choice in AUTHORS.items()}
    if options.guides:
        texts["guides_en"] = list(_guides(options.guides))
    texts["chat_en"] = _questions()
    for name, records in texts.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (options.out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        print(f"{name}: {len(records):,} records, {sum(map(len, lines)):,} characters")


def _works(
    works: Iterable[dict[str, str]], author: str, kana: str, total: int, shortest: int, longest: int
) -> list[dict[str, str]]:
    fitting = [
        work
        for work in works
        if work["author"] == author and work["kana"] == kana and shortest <= len(work["text"]) <= longest
    ]
    random.Random(0).shuffle(fitting)
    chosen: list[dict[str, str]] = []
    for work in fitting:
        if sum(len(each["text"]) for each in chosen) >= total:
            break
        chosen.append(work)
    return chosen


def _guides(folder: Path) -> Iterable[dict[str, str]]:
    """Yield the paragraphs of some guides that are neither code nor tables."""
    paths = sorted(path for path in folder.glob("*.md") if not path.name.endswith(".ja.md"))
    random.Random(0).shuffle(paths)
    total = 0
    for path in paths:
        blocks = _CODE.sub("", path.read_text("utf-8")).split("\n\n")
        text = "\n\n".join(block.strip() for block in blocks if block.strip() and "|" not in block)
        if total < GUIDES:
            yield {"title": path.stem, "text": text}
        total += len(text)


def _questions() -> list[dict[str, str]]:
    """Return questions with their first answers. A file of the corpus repeats ten questions 105 times."""
    answers: dict[str, str] = {}
    folder = resources.files("chatterbot_corpus") / "data" / "english"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        for conversation in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            question, answer = (str(turn).strip() for turn in conversation[:2])
            if question and answer:
                answers.setdefault(question, answer)
    records = [{"prompt": question, "completion": answer} for question, answer in answers.items()]
    return random.Random(0).sample(records, QUESTIONS)


if __name__ == "__main__":
    main()
