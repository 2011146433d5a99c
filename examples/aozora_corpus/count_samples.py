"""Count the samples that several ways of splitting produce, for a corpus and scaled to all of Aozora Bunko.

    python examples/aozora_corpus/count_samples.py aozora.jsonl

The script reads the JSON lines of `tsugiki aozora` one work at a time. It prints a Markdown table with the number of
samples in this corpus, and with that number scaled to all works, by works and by characters. README.md names the
sources of both totals.
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
ASSUMED = 1.3, 1.6, 1.8, 2.0, 2.2  # characters per token, for a tokenizer that is not available


def works(path: Path) -> Iterator[dict[str, Any]]:
    """Read the corpus, one work at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def count(path: Path) -> Counter[str]:
    """Count works, characters, tokens and pieces, with the embedded tokenizer and one end token per work."""
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
    """Yield each way of splitting and its number of samples in this corpus."""
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
    """Count, scale and print the table."""
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
