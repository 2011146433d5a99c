"""Count what several ways of splitting make of a corpus, and what they would make of all of Aozora Bunko.

    python examples/aozora_corpus/count_samples.py aozora.jsonl

Reads the JSON lines of `tsugiki aozora` one work at a time, and prints a Markdown table: the count here, and the count
scaled to the full set, once by its works and once by its characters. Where both numbers of the full set come from
stands in README.md.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tsugiki.base.loading import load_tokenizer

FULL_WORKS, FULL_CHARACTERS = 17_000, 219_000_000
ASSUMED = 1.3, 1.6, 1.8, 2.0, 2.2  # characters a token, for a tokenizer that is not here


def works(path: Path) -> Iterator[dict[str, Any]]:
    """The corpus, one work at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def count(path: Path) -> Counter[str]:
    """Works, characters, tokens and pieces; tokens are those of the embedded tokenizer, with one behind each work."""
    tokenizer = load_tokenizer("embedded")
    counts: Counter[str] = Counter()
    for work in works(path):
        text = work["text"]
        tokens = len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) + 1
        counts["whole works"] += 1
        counts["characters"] += len(text)
        counts["tokens"] += tokens
        counts[f"characters, {work['kana']} kana"] += len(text)
        counts[f"tokens, {work['kana']} kana"] += tokens
        counts["lines, which are paragraphs in print"] += sum(1 for line in text.split("\n") if line.strip())
        counts["sections between blank lines"] += len(re.split(r"\n(?:[ 　]*\n)+", text))
        counts["2,000 characters, each work by itself"] += -(-len(text) // 2000)
        counts["1,024 tokens, each work by itself"] += -(-tokens // 1024)
    return counts


def splittings(counts: Counter[str]) -> Iterator[tuple[str, float]]:
    """Each way of splitting and its number of samples here."""
    for name, number in counts.items():
        if not name.startswith(("characters", "tokens")):
            yield name, number
    for size in (512, 1000, 1024, 2000):
        yield f"{size:,} characters, works joined", counts["characters"] / size
    for size in (512, 1024):
        yield f"{size:,} tokens, works joined", counts["tokens"] / size
        yield f"{size:,} tokens, works joined, modern kana only", counts["tokens, modern kana"] / size
    for rate in ASSUMED:
        yield f"1,024 tokens of {rate} characters (assumed), works joined", counts["characters"] / rate / 1024


def main() -> None:
    """Count, scale and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="JSON lines of `tsugiki aozora`")
    parser.add_argument("--works", type=int, default=FULL_WORKS, help="works of the full set (default: %(default)s)")
    parser.add_argument("--characters", type=int, default=FULL_CHARACTERS, help="its characters (default: %(default)s)")
    arguments = parser.parse_args()
    counts = count(arguments.corpus)
    by_works = arguments.works / counts["whole works"]
    by_characters = arguments.characters / counts["characters"]
    print(
        f"{counts['whole works']:,} works, {counts['characters']:,} characters "
        f"({counts['characters, modern kana'] / counts['characters']:.0%} in modern kana), "
        f"{counts['tokens']:,} tokens of {counts['characters'] / counts['tokens']:.2f} characters; "
        f"the full set is {by_works:.2f} times that by works, {by_characters:.2f} times by characters\n"
    )
    print("| a sample is | here | full set, by works | full set, by characters |")
    print("| --- | ---: | ---: | ---: |")
    for name, number in splittings(counts):
        print(f"| {name} | {number:,.0f} | {number * by_works:,.0f} | {number * by_characters:,.0f} |")


if __name__ == "__main__":
    main()
