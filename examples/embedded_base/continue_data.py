"""Write the texts with which the embedded base was continued: `python continue_data.py all.jsonl continue.jsonl`.

`all.jsonl` is the output of `tsugiki aozora` for all works. The texts are works in old kana, once or twice; children's
tales; and works of other authors in modern kana. 泉鏡花, 織田作之助, 永井荷風 and 森鴎外 are left out, in every
orthography, and so are the works in old kana of the authors on which the guides train.
"""

import json
import random
import sys
from pathlib import Path

HELD_OUT = {"000050", "000040", "001341", "000129"}  # 泉鏡花, 織田作之助, 永井荷風, 森鴎外
OLD_CHARACTERS = {"000042", "000082", "000158", "000160", "000168", "000083", "000183", "001383", "001779"}
MAKINO = "000183"  # 牧野信一
TALES = {"001475", "000081"}  # 小川未明, 宮沢賢治
OTHERS, LONGEST = 9_400_000, 120_000  # characters of the other works in all, and of one work at most


def main(source: Path, out: Path) -> None:
    """Choose the works and write them in random order."""
    lines = source.read_text("utf-8").splitlines(keepends=True)
    works = {line: work for line in lines if (work := json.loads(line))["person_id"] not in HELD_OUT}
    old = [line for line, work in works.items() if work["kana"] == "old"]
    old_characters = [
        line
        for line in old
        if works[line]["person_id"] in OLD_CHARACTERS
        and {"來", "氣"} <= set(line)
        and set("國學會實當聲變體") & set(line)
    ]
    old_kana = [line for line in old if works[line]["person_id"] == MAKINO and "來" not in line][:150]
    modern = [line for line, work in works.items() if work["kana"] == "modern"]
    tales = [line for line in modern if works[line]["person_id"] in TALES]
    others = [line for line in modern if works[line]["person_id"] not in TALES]
    chance = random.Random(35)
    chance.shuffle(others)
    taken, characters = [], 0
    for line in others:
        size = len(works[line]["text"])
        if size <= LONGEST and characters <= OTHERS:
            taken.append(line)
            characters += size
    chosen = [*taken, *tales, *old_kana, *old_characters, *old_characters]
    chance.shuffle(chosen)
    out.write_text("".join(chosen), "utf-8")
    print(f"{len(chosen):,} works, {sum(len(json.loads(line)['text']) for line in chosen):,} characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
