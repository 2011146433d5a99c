"""Write the tables of the guide to models from the results of a walk, so that nothing in them is typed by hand.

    python -m tests.models.page results.jsonl docs/models.md docs/models.ja.md

In a guide, a table is between two comments, of which the first names it:

    <!-- table: types -->
    <!-- end of table -->
"""

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

from tests.models.life import CHECKS, Life
from tests.models.peft_targets import EXPLAINED, comparable, compare
from tests.models.walk import read_results
from tsugiki.model import ARCHITECTURES, Architecture
from tsugiki.report import Table

_TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_JAPANESE = {
    "task": "タスク",
    "types": "種類",
    "pass every check": "全項目に合格",
    "PEFT computes the same": "PEFT と一致",
    "with experts in one parameter": "一つのパラメータにエキスパートを持つ",
    "adapted by default": "既定の対象",
    "experts": "エキスパート",
    "documents in a row": "1 行の文書",
    "checks": "検査",
    "type": "種類",
    "reason": "理由",
    "not run": "未実行",
    "both": "両方",
    "Tsugiki alone": "Tsugiki だけ",
    "PEFT alone": "PEFT だけ",
    "of": "/",
    "yes": "はい",
    "no": "いいえ",
    "position ids": "位置 ID",
    "attention mask": "マスク",
    "separate rows": "1 文書 1 行",
    "causal": "因果言語モデル",
    "seq2seq": "エンコーダー・デコーダー",
    "speech": "音声認識",
}
_LATER = (
    "attends to later tokens, so it cannot learn to predict them",
    "後ろのトークンも見るため、次のトークンの予測を学べない",
)
_RENAMED = (
    "PEFT renames the layers while it loads a file, also one of its own, and drops them",
    "PEFT が読み込み時に層の名前を変え、自身のファイルでも値を捨ててしまう",
)
_NO_TINY = (
    "the general rule for tiny models does not build one that runs",
    "検査用の小さなモデルを共通の規則では作れない",
)
_EXPLAINED = "reason: "
REASONS: dict[str, tuple[str, str]] = {
    "build": _NO_TINY,
    "cpmant": _LATER,
    "xlm": _LATER,
    "xlnet": _LATER,
    "laguna": _RENAMED,
    "inkling2_text": _RENAMED,
    "inkling2_loop_text": _RENAMED,
    "gemma3n": ("its image encoder requires the package timm", "画像エンコーダーに timm パッケージが必要"),
    "reformer": (
        "its reversible layers compute no gradients if the embeddings are frozen",
        "可逆層は、埋め込みが固定されていると勾配を計算しない",
    ),
}
"""Model type -> why it does not pass every check, in English and Japanese."""


def main(results: str, *guides: str) -> None:
    """Write the tables of these guides."""
    made = tables_of(list(read_results(Path(results)).values()))
    for guide in map(Path, guides):
        japanese = guide.name.endswith(".ja.md")
        text = guide.read_text(encoding="utf-8")
        guide.write_text(fill(text, made, japanese), encoding="utf-8")


def tables_of(lives: Sequence[Life]) -> dict[str, Table]:
    """The headers and rows of each table, in English."""
    return {"summary": _summary(lives), "types": _types(lives), "failures": _failures(lives), "peft": _peft()}


def fill(text: str, tables: Mapping[str, Table], japanese: bool) -> str:
    """The text of a guide with these tables."""
    return _TABLE.sub(lambda match: f"{match[1]}{_markdown(*tables[match[2]], japanese)}{match[4]}", text)


def _summary(lives: Sequence[Life]) -> Table:
    headers = ["task", "types", "pass every check", "PEFT computes the same", "with experts in one parameter"]
    rows = []
    for task in dict.fromkeys(life.task for life in lives):
        own = [life for life in lives if life.task == task]
        rows.append([task, len(own), _passed(own), sum(map(_peft_reads, own)), sum(bool(life.experts) for life in own)])
    return headers, [list(map(str, row)) for row in rows]


def _types(lives: Sequence[Life]) -> Table:
    headers = ["type", "task", "adapted by default", "experts", "documents in a row", "PEFT", "llama.cpp", "checks"]
    rows = []
    for life in lives:
        if not life.layers:
            continue
        checks = [name for name in CHECKS if _applies(name, life)]
        passed = len(checks) - len(life.failed)
        rows.append(
            [
                life.model_type,
                life.task,
                _names(life.layers),
                _names(life.experts),
                life.masking.replace("_ids", " ids").replace("_", " ") or "–",
                "yes" if _peft_reads(life) else "no",
                ARCHITECTURES.get(life.model_type, Architecture()).llama_cpp or "–",
                f"{passed} of {len(checks)}",
            ]
        )
    return headers, rows


def _failures(lives: Sequence[Life]) -> Table:
    rows = [[life.model_type, life.task, ", ".join(life.failed), _reason(life)] for life in lives if life.failed]
    return ["type", "task", "checks", "reason"], rows


def _reason(life: Life) -> str:
    if life.model_type in REASONS:
        return f"{_EXPLAINED}{life.model_type}"
    return f"{_EXPLAINED}build" if "build" in life.failed else "; ".join(life.failed.values())


def _peft() -> Table:
    rows = []
    for model_type, task in comparable():
        found = compare(model_type, task)
        alone = _names(found.peft_alone)
        reason = EXPLAINED.get((model_type, task))
        rows.append(
            [model_type, task, _names(found.both), _names(found.ours_alone), f"{alone}: {reason}" if reason else alone]
        )
    others = [name for name in PEFT_TARGETS if name not in dict(comparable())]
    return ["type", "task", "both", "Tsugiki alone", "PEFT alone"], [*rows, [", ".join(others), "–", "–", "–", "–"]]


def _passed(lives: Sequence[Life]) -> int:
    return sum(not life.failed for life in lives)


def _peft_reads(life: Life) -> bool:
    return bool(life.layers) and "PEFT" not in life.failed


def _applies(check: str, life: Life) -> bool:
    return {"experts": bool(life.experts), "isolation": life.task == "causal"}.get(check, True)


def _names(paths: Sequence[str]) -> str:
    """The different last components of names, in their order."""
    return " ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths)) or "–"


def _markdown(headers: list[str], rows: list[list[str]], japanese: bool) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(_cell(cell, japanese) for cell in line)} |\n" for line in lines)


def _cell(text: str, japanese: bool) -> str:
    if text.startswith(_EXPLAINED):
        return REASONS[text.removeprefix(_EXPLAINED)][japanese]
    if not japanese:
        return text
    count = re.fullmatch(r"(\d+) of (\d+)", text)
    return f"{count[1]}/{count[2]}" if count else _JAPANESE.get(text, text)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
