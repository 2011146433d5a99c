"""Write the tables of the guide to models from the results of a walk, so that nothing in them is typed by hand.

    python -m tests.models.page results.jsonl docs/models.md docs/models.ja.md

In a guide, a table is between two comments, of which the first names it:

    <!-- table: types -->
    <!-- end of table -->
"""

import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.models.life import Life
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
    "checks": "検査",
    "reason": "理由",
    "exported for llama.cpp": "llama.cpp 用に書き出せる種類",
    "causal": "因果言語モデル",
    "seq2seq": "エンコーダー・デコーダー",
    "speech": "音声認識",
    "of their own": "種類ごとに異なる",
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
_NOT_LOADED = (
    "Transformers saves a text model of a type that it does not load",
    "Transformers が、自身では読み込めない種類のテキストモデルとして保存する",
)
_EXPLAINED = "reason: "
_OWN = "of their own"
_MARKS = {"attention_mask": "‡", "separate_rows": "†"}
"""How documents in a row are kept apart -> the mark of a type in the table; position ids have none."""
REASONS: dict[str, tuple[str, str]] = {
    "build": _NO_TINY,
    "cpmant": _LATER,
    "xlm": _LATER,
    "xlnet": _LATER,
    "laguna": _RENAMED,
    "inkling2_text": _RENAMED,
    "inkling2_loop_text": _RENAMED,
    "emu3": _NOT_LOADED,
    "mllama": _NOT_LOADED,
    "blt": (
        "Transformers cannot generate with it, so a run with samples fails",
        "Transformers では生成できず、生成例のある実行は失敗する",
    ),
    "git": ("its own loss counts the tokens of an image", "モデル自身の損失計算が画像のトークンを前提とする"),
    "xlstm": (
        "it does not compute in bfloat16; train with `--base-dtype fp32`",
        "bfloat16 では計算できない（`--base-dtype fp32` なら学習できる）",
    ),
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
    return {
        "summary": _summary(lives), "types": _types(lives), "exported": _exported(lives), "failures": _failures(lives)
    }  # fmt: skip


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
    """A row for each set of layers that several types have, and two for the others, without and with experts."""
    groups: dict[tuple[frozenset[str], frozenset[str]], list[Life]] = {}
    for life in (life for life in lives if life.layers):
        groups.setdefault((frozenset(_names(life.layers)), frozenset(_names(life.experts))), []).append(life)
    rows = [
        [_marked(own), *(" ".join(names) or "–" for names in (_names(own[0].layers), _names(own[0].experts)))]
        for own in sorted(groups.values(), key=len, reverse=True)
        if len(own) > 1
    ]
    alone = [own[0] for own in groups.values() if len(own) == 1]
    for experts, cell in ((False, "–"), (True, _OWN)):
        if some := [life for life in alone if bool(life.experts) == experts]:
            rows.append([_marked(some), _OWN, cell])
    return ["types", "adapted by default", "experts"], rows


def _marked(lives: Sequence[Life]) -> str:
    return _listed(f"{life.model_type}{_MARKS.get(life.masking, '')}" for life in lives)


def _exported(lives: Sequence[Life]) -> Table:
    names = {life.model_type: ARCHITECTURES.get(life.model_type, Architecture()).llama_cpp for life in lives}
    found = [name if name == theirs else f"{name} ({theirs})" for name, theirs in names.items() if theirs]
    return ["exported for llama.cpp"], [[_listed(found)]]


def _failures(lives: Sequence[Life]) -> Table:
    groups: dict[tuple[str, str], list[str]] = {}
    for life in (life for life in lives if life.failed):
        groups.setdefault((", ".join(life.failed), _reason(life)), []).append(life.model_type)
    return ["types", "checks", "reason"], [[_listed(types), *found] for found, types in groups.items()]


def _reason(life: Life) -> str:
    if reason := REASONS.get(life.model_type):
        return f"{_EXPLAINED}{next(name for name, each in REASONS.items() if each == reason)}"
    return f"{_EXPLAINED}build" if "build" in life.failed else "; ".join(life.failed.values())


def _passed(lives: Sequence[Life]) -> int:
    return sum(not life.failed for life in lives)


def _peft_reads(life: Life) -> bool:
    return bool(life.layers) and "PEFT" not in life.failed


def _names(paths: Sequence[str]) -> list[str]:
    """The different last components of names, in their order."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _markdown(headers: list[str], rows: list[list[str]], japanese: bool) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(_cell(cell, japanese) for cell in line)} |\n" for line in lines)


def _cell(text: str, japanese: bool) -> str:
    if text.startswith(_EXPLAINED):
        return REASONS[text.removeprefix(_EXPLAINED)][japanese]
    return _JAPANESE.get(text, text) if japanese else text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
