"""Write texts for `quality.defaults`: `python -m benchmarks.quality.default_texts --aozora WORKS.jsonl --out DIR`.

For each name there are two files: `NAME.jsonl` to train on, and `NAME.test.jsonl`, which no run sees.

- works of single authors, chosen by a seeded shuffle from the output of `tsugiki aozora`;
- `unseen_NAME`: works of one author, or of several, that are in none of the others, so that no rule was chosen by them;
- `developers_ja`: a Japanese manual with modern prose, Debian's package developers-reference-ja (GPL-2+), a document
  for each chapter;
- `chat_en`: the English questions and answers of the package chatterbot-corpus 1.3.3 (BSD licence);
- `perl_faq`: questions and answers about Perl, Debian's package perl-doc (Artistic licence or GPL-1+), as prompts with
  completions;
- `guides_en`: the prose of some of this project's English guides, a document for each.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import yaml

QUESTIONS = 360  # records of chat_en, and of its test
CHARACTERS = 30_000  # of guides_en and developers_ja
TESTS = 2  # documents of a test
FAQ_CHARACTERS, FAQ_TESTS = 45_000, 12  # of the answers to learn from, and questions of the test
FAQ_SHORTEST, FAQ_LONGEST = 150, 1500  # characters of an answer
# Name: author, kana, characters in all, shortest and longest work.
AUTHORS = {
    "kyoka": ("泉鏡花", "old", 70_000, 2000, 20_000),
    "kyoka_small": ("泉鏡花", "old", 12_000, 2000, 6000),
    "kafu": ("永井荷風", "old", 120_000, 2000, 20_000),
    "kenji": ("宮沢賢治", "modern", 60_000, 2000, 20_000),
    "oda_small": ("織田作之助", "modern", 20_000, 2000, 6000),
    "mimei": ("小川未明", "modern", 250_000, 1000, 8000),
    "ogai": ("森鴎外", "old", 30_000, 3000, 16_000),
    "soseki": ("夏目漱石", "old", 30_000, 3000, 13_000),
    "akutagawa": ("芥川龍之介", "old", 30_000, 3000, 12_000),
    "dazai": ("太宰治", "old", 30_000, 3000, 16_000),
    "toyoshima": ("豊島与志雄", "old", 30_000, 3000, 16_000),
    "toson": ("島崎藤村", "old", 30_000, 3000, 20_000),
    "ango": ("坂口安吾", "old", 30_000, 3000, 12_000),
    "makino": ("牧野信一", "old", 30_000, 3000, 12_000),
    "kenji_old": ("宮沢賢治", "old", 30_000, 3000, 12_000),
    "yokomitsu": ("横光利一", "old", 30_000, 2000, 12_000),
    "kido": ("岡本綺堂", "old", 30_000, 3000, 12_000),
    "kikuchi": ("菊池寛", "old", 20_000, 2000, 12_000),
}
# Name: author, kana, characters in all, longest work. Works that a trajectory learns, that choose and that judge.
TRAJECTORIES = {
    "akutagawa": ("芥川龍之介", "old", 50_000, 16_000),
    "akutagawa_short": ("芥川龍之介", "old", 14_000, 8000),
    "ango": ("坂口安吾", "old", 50_000, 16_000),
    "dazai": ("太宰治", "old", 50_000, 16_000),
    "kyoka": ("泉鏡花", "old", 50_000, 16_000),
    "kyoka_modern": ("泉鏡花", "modern", 50_000, 16_000),
    "kyotaro": ("泉鏡太郎", "old", 50_000, 16_000),
    "makino": ("牧野信一", "old", 50_000, 16_000),
    "oda": ("織田作之助", "modern", 50_000, 16_000),
    "oda_short": ("織田作之助", "modern", 14_000, 8000),
    "ogai": ("森鴎外", "old", 50_000, 40_000),
    "ranpo": ("江戸川乱歩", "modern", 50_000, 40_000),
    "terada": ("寺田寅彦", "modern", 50_000, 16_000),
    "unno": ("海野十三", "modern", 50_000, 16_000),
    "yumeno": ("夢野久作", "modern", 50_000, 16_000),
}
# Name: author (None: all), kana, characters in all, longest work. No rule was chosen by these works.
UNSEEN = {
    "unseen_soseki": ("夏目漱石", "old", 50_000, 16_000),
    "unseen_kafu": ("永井荷風", "old", 50_000, 16_000),
    "unseen_yokomitsu": ("横光利一", "old", 50_000, 16_000),
    "unseen_akutagawa": ("芥川龍之介", "old", 50_000, 16_000),
    "unseen_ango": ("坂口安吾", "old", 50_000, 16_000),
    "unseen_kyoka": ("泉鏡花", "modern", 50_000, 16_000),
    "unseen_toson": ("島崎藤村", "old", 50_000, 16_000),
    "unseen_makino": ("牧野信一", "old", 50_000, 16_000),
    "unseen_kenji": ("宮沢賢治", "old", 50_000, 16_000),
    "unseen_terada": ("寺田寅彦", "modern", 50_000, 16_000),
    "unseen_unno": ("海野十三", "modern", 50_000, 16_000),
    "unseen_ranpo": ("江戸川乱歩", "modern", 50_000, 40_000),
    "unseen_old": (None, "old", 250_000, 16_000),
}
UNSEEN_SEED = 2
Records = list[dict[str, str]]
_CODE = re.compile(r"```.*?```", re.DOTALL)
_POD_COMMAND = re.compile(r"^=(?:item *|\w+.*\n?)", re.MULTILINE)
_POD_FORMAT = re.compile(r"[A-Z]<(?:[^<>|]*\||<+ )?([^<>]*?)(?: >+)?>")


def main() -> None:
    """Write two JSONL files for each text whose source is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aozora", type=Path, help="output of `tsugiki aozora` with the works of all authors")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="JSONL files of works that are not taken")
    parser.add_argument("--developers", type=Path, help="folder with the .rst.txt files of developers-reference-ja")
    parser.add_argument("--guides", type=Path, help="folder of the guides: docs")
    parser.add_argument("--perl", type=Path, help="folder with perlfaq1.pod to perlfaq9.pod of perl-doc")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    texts: dict[str, tuple[Records, Records]] = {}
    if options.aozora:
        left_out = {work["text"] for file in options.without for work in _read(file)}
        works = [work for work in _read(options.aozora) if work["text"] not in left_out]
        texts |= {name: _works(works, *choice) for name, choice in AUTHORS.items()}
        for name, choice in TRAJECTORIES.items():
            for part, records in zip(("train", "valid", "test"), _parts(works, *choice), strict=True):
                _write(options.out / f"{name}.{part}.jsonl", records)
        texts |= _unseen(works)
    if options.developers:
        texts["developers_ja"] = _documents(options.developers.glob("*.rst.txt"))
    if options.guides:
        guides = (path for path in options.guides.glob("*.md") if not path.name.endswith(".ja.md"))
        texts["guides_en"] = _documents(guides)
    if options.perl:
        texts["perl_faq"] = _frequently_asked(options.perl.glob("perlfaq[1-9].pod"))
    texts["chat_en"] = _questions()
    for name, (learned, test) in texts.items():
        _write(options.out / f"{name}.jsonl", learned)
        _write(options.out / f"{name}.test.jsonl", test)


def _read(file: Path) -> Records:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _write(file: Path, records: Records) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), "utf-8")
    print(f"{file.name}: {len(records):,} records, {sum(map(len, lines)):,} characters")


def _works(
    works: Iterable[dict[str, str]], author: str, kana: str, total: int, shortest: int, longest: int
) -> tuple[Records, Records]:
    fitting = {
        work["title"]: work
        for work in works
        if work["author"] == author and work["kana"] == kana and shortest <= len(work["text"]) <= longest
    }
    shuffled = list(fitting.values())
    random.Random(0).shuffle(shuffled)
    return _divide(shuffled, total)


def _parts(works: Iterable[dict[str, str]], author: str, kana: str, total: int, longest: int) -> tuple[Records, ...]:
    """Return works to learn with `total` characters, up to ten short ones that choose, and up to four that judge."""
    named = (work for work in works if work["author"] == author and work["kana"] == kana)
    found = {work["title"]: work for work in named if 1500 <= len(work["text"]) <= longest}
    shuffled = list(found.values())
    random.Random(1).shuffle(shuffled)
    judging = shuffled[: min(4, max(2, len(shuffled) // 4))]
    rest = shuffled[len(judging) :]
    short = sorted(rest, key=lambda work: len(work["text"]))[: len(rest) // 2]
    choosing = random.Random(1).sample(short, min(10, max(2, len(shuffled) // 4), len(short)))
    learned, characters = Records(), 0
    for work in (work for work in rest if work not in choosing):
        if characters < total:
            learned.append(work)
            characters += len(work["text"])
    return learned, choosing, judging


def _unseen(works: Records) -> dict[str, tuple[Records, Records]]:
    """Return works that are in no other text: those of an author to learn, and up to six that judge."""
    used = [record["text"] for choice in AUTHORS.values() for part in _works(works, *choice) for record in part]
    used += [record["text"] for choice in TRAJECTORIES.values() for part in _parts(works, *choice) for record in part]
    left = [work for work in works if work["text"] not in set(used)]
    texts = {}
    for name, (author, kana, total, longest) in UNSEEN.items():
        of_author = (work for work in left if author in (None, work["author"]) and work["kana"] == kana)
        found = {work["title"]: work for work in of_author if 1500 <= len(work["text"]) <= longest}
        shuffled = list(found.values())
        random.Random(UNSEEN_SEED).shuffle(shuffled)
        count = min(6, max(2, len(shuffled) // 4))
        texts[name] = (_first(shuffled[count:], total), shuffled[:count])
    return texts


def _first(records: Records, total: int) -> Records:
    """Return the first records with `total` characters."""
    lengths = itertools.accumulate(len(record["text"]) for record in records)
    return [record for record, length in zip(records, lengths, strict=True) if length - len(record["text"]) < total]


def _divide(records: Records, total: int) -> tuple[Records, Records]:
    """Return the first records, with `total` characters, and the next ones as a test."""
    count = characters = 0
    while characters < total and count < len(records) - TESTS:
        characters += len(records[count]["text"])
        count += 1
    return records[:count], records[count : count + TESTS]


def _documents(paths: Iterable[Path]) -> tuple[Records, Records]:
    """Return the paragraphs of some guides that are neither code nor tables."""
    records: Records = []
    for path in sorted(paths):
        blocks = _CODE.sub("", path.read_text("utf-8")).split("\n\n")
        text = "\n\n".join(block.strip() for block in blocks if block.strip() and "|" not in block)
        records.append({"title": path.stem, "text": text[:12_000]})
    random.Random(0).shuffle(records)
    return _divide(records, CHARACTERS)


def _questions() -> tuple[Records, Records]:
    """Return questions with their first answers. A file of the corpus repeats ten questions 105 times."""
    answers: dict[str, str] = {}
    folder = resources.files("chatterbot_corpus") / "data" / "english"
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        for conversation in yaml.safe_load(path.read_text("utf-8"))["conversations"]:
            question, answer = (str(turn).strip() for turn in conversation[:2])
            if question and answer:
                answers.setdefault(question, answer)
    records = [{"prompt": question, "completion": answer} for question, answer in answers.items()]
    chosen = random.Random(0).sample(records, 2 * QUESTIONS)
    return chosen[:QUESTIONS], chosen[QUESTIONS:]


def _frequently_asked(paths: Iterable[Path]) -> tuple[Records, Records]:
    """Return the questions (headings) and answers of POD files, without markup."""
    records: Records = []
    for path in sorted(paths):
        for section in path.read_text("utf-8").split("\n=head2 ")[1:]:
            question, answer = (_plain(part) for part in section.split("\n=head1")[0].split("\n\n", 1))
            if FAQ_SHORTEST <= len(answer) <= FAQ_LONGEST:
                records.append({"prompt": question + "\n", "completion": answer})
    random.Random(0).shuffle(records)
    test, count, characters = records[:FAQ_TESTS], FAQ_TESTS, 0
    while characters < FAQ_CHARACTERS and count < len(records):
        characters += len(records[count]["completion"])
        count += 1
    return records[FAQ_TESTS:count], test


def _plain(pod: str) -> str:
    text = _POD_COMMAND.sub("", pod)
    while (without := _POD_FORMAT.sub(r"\1", text)) != text:  # they nest
        text = without
    return re.sub(r"\n{3,}", "\n\n", text).strip()


if __name__ == "__main__":
    main()
