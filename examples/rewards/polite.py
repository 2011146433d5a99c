"""A rule of the guide to rewards, polite Japanese, and its prompts.

    python examples/rewards/polite.py
    tsugiki train --model embedded --data beginnings.jsonl --held-out other.jsonl --reward examples/rewards/polite.py …

beginnings.jsonl has 96 beginnings of sentences, and other.jsonl 24 with other subjects. They are written to the working
directory.
"""

import json
import re
from pathlib import Path

_SENTENCE = re.compile(r"[^。！？\n]+[。！？]")
_POLITE = re.compile(r"(です|ます|でした|ました|ません|でしょう|ましょう|ください)[かねよわ]*[。！？]$")
_TIMES = ("昨夜、", "朝早く、", "翌日、", "その頃、", "日曜日に、", "秋の終わりに、")
_SUBJECTS = (
    *("庭の梅が", "弟は手紙を", "山の上に雪が", "鐘の音が遠くから", "猫が縁側で", "船は港を静かに"),
    *("兄は毎朝川まで", "祖父は縁側でお茶を", "子供たちが校庭で", "妹は窓のそばで本を", "父は町の工場で"),
    *("叔母は赤い帽子を", "姉は古い着物を", "小舟が波に", "大工が新しい橋を", "学生が駅前で友達を"),
)
_OTHERS = ("蛍が川の上で", "娘は井戸で水を", "客が座敷で煙草を", "医者が隣村まで馬で")


def reward(prompt: str, answer: str) -> float:
    """Return the share of the sentences that end politely; 0 without a sentence."""
    sentences = _SENTENCE.findall(prompt + answer)
    return sum(bool(_POLITE.search(one)) for one in sentences) / max(len(sentences), 1)


def main() -> None:
    """Write the files."""
    for name, subjects in (("beginnings.jsonl", _SUBJECTS), ("other.jsonl", _OTHERS)):
        rows = [{"prompt": time + subject} for subject in subjects for time in _TIMES]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        Path(name).write_text(lines, encoding="utf-8")
        print(f"{name}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
