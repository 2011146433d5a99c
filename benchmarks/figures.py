"""A table of figures for the guides: headers, cells, and with what they were measured."""

import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tsugiki.base.loading import default_device
from tsugiki.io.json import write_json
from tsugiki.report.table import Table
from tsugiki.training.record.run_record import describe_machine

_PACKAGES = (
    "tsugiki", "torch", "transformers", "accelerate", "peft", "trl", "datasets", "litgpt", "lightning", "mlx", "mlx-lm",
)  # fmt: skip

ROOMS = {
    "gguf": ("base", "export"),
    "guide_runs": ("data", "lora", "preference", "training"),
    "memory": ("fast", "lowbit", "training/measure", "training/step"),
    "quality": ("data", "lora", "preference", "training"),
    "quality.coverage": ("training/record",),
    "race": ("fast", "lora", "training"),
    "serving": ("fast", "generation", "serve"),
    "speed": ("fast", "lora", "lowbit", "training/step"),
}
"""Folder of benchmarks, or a module in it -> the rooms of `src/tsugiki` that it measures."""

CHANGES = 400
"""A result is too old to be shown when the rooms that it measures have had more changes since than this."""

_ROOT = Path(__file__).parents[1]

KIND = "figures"
"""The value of `kind` in such a file; the results of `benchmarks.speed` have another one."""

_JAPANESE_CELLS = {
    r"^chosen answers alone$": "良い応答だけ",
    r"^chosen answers alone, equal time$": "良い応答だけ、同じ時間",
    r"^base$": "ベースモデル",
    r"^pairs, (SimPO|DPO)$": r"組、\1",
    r"^all, by advantage$": "すべて、アドバンテージで重み付け",
    r"^best answers alone$": "最良の応答だけ",
    r"^TRL, online DPO$": "TRL、オンライン DPO",
    r"^TRL, GRPO$": "TRL、GRPO",
    r"^auto$": "自動",
    r"([\d,]+) of (\d+) rows": r"\2 行 × \1",
    r" \(rate ([^,)]+), step (\d+)\)": r"（学習率 \1、ステップ \2）",
    r" \(rate ([^,)]+)\)": r"（学習率 \1）",
    r" \(without head, rate ([^)]+)\)": r"（出力層なし、学習率 \1）",
    r" \(with head, rate ([^)]+)\)": r"（出力層あり、学習率 \1）",
    r" \(head at ([\d.]+) of the rate, rate ([^)]+)\)": r"（出力層の学習率は \1 倍、学習率 \2）",
    r" \(([a-z_,]+), rate × ([^)]+)\)": r"（\1、学習率 × \2）",
    r"^loss of step (\d+): Tsugiki, PEFT": r"ステップ \1 の損失：Tsugiki、PEFT",
    r" \(both float32\)$": "（どちらも float32）",
    r"^largest relative difference of the loss over 50 steps$": "50 ステップでの損失の相対差の最大値",
    r"^held-out loss after 60 steps, base in (\w+)$": r"60 ステップ後の評価損失、ベースモデルは \1",
    r"^chunked$": "分割",
    r"^whole logits$": "ロジット全体",
    r"^about ([\d,]+)$": r"約 \1",
    r"^out of memory$": "メモリ不足",
    r"^switch \((\d+) layers\), µs$": r"切り替え（\1 層）、µs",
    r"^forward of 8 x 128, ": "8 x 128 の順伝播、",
    r"^generate, 32 new tokens, ": "32 トークンの生成、",
    r"one adapter, tokens/s$": "アダプター 1 個、トークン/秒",
    r"eight adapters, tokens/s$": "アダプター 8 個、トークン/秒",
    r"、ratio$": "、比",
    r"^load and unload, s: mean of the first ten$": "読み込みと取り外し、秒：最初の 10 回の平均",
    r"^load and unload, s: mean of the last ten of (\d+)$": r"読み込みと取り外し、秒：\1 回のうち最後の 10 回の平均",
    r"^memory of the process before, MB$": "測定前のプロセスのメモリ、MB",
    r"^memory of the process after, MB$": "測定後のプロセスのメモリ、MB",
    r": texts that llama.cpp tokenises differently$": "：llama.cpp とトークン化が異なるテキスト",
    r": the same, for texts with U\+2581$": "：同上、U+2581 を含むテキスト",
    r": standard deviation of the logits$": "：ロジットの標準偏差",
    r": largest and mean difference of a logit from llama.cpp": "：llama.cpp とのロジットの差、最大と平均",
    r": top token agrees with llama.cpp": "：最上位トークンが llama.cpp と一致",
    r": greedy tokens before the first difference from llama.cpp \(of 32\)$": (
        "：llama.cpp との最初の違いまでに貪欲生成で一致したトークン（32 のうち）"
    ),
    r": the same, with llama.cpp on float32$": "：同上、llama.cpp は float32",
    r": seconds of the first and the second load$": "：1 回目と 2 回目の読み込みの秒数",
    r"(?<=[値均致]) on float32$": "（llama.cpp は float32）",
    r"^([\d,]+) of (\d+)$": r"\2 のうち \1",
    r"not in (\d+)": r"\1 秒では未達",
    r"^as it is$": "そのまま",
    r"^in float32$": "float32 に変換",
    r"^without$": "なし",
    r"^with$": "あり",
    r"^original$": "元のファイル",
    r"^all$": "すべて",
    r"^the chapter's script$": "章のスクリプト",
}
"""Pattern of words in cells -> what a Japanese guide has instead."""


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that affect the figures and are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def measured_commit() -> str:
    """Return the commit that is checked out, with `-dirty` if files differ from it; "" outside of a repository."""
    return _git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")


def changes_since(commit: str, command: str) -> int | None:
    """Count the changes, since `commit`, of the rooms that a benchmark measures.

    Args:
        commit: as `measured_commit` returns it.
        command: the command of the benchmark, such as `python -m benchmarks.speed …`.

    Returns:
        The number of commits without merges; None where the history does not reach back to `commit`.
    """
    module = next(word for word in command.split() if word.startswith("benchmarks.")).removeprefix("benchmarks.")
    rooms = [f"src/tsugiki/{room}" for room in ROOMS.get(module) or ROOMS[module.split(".")[0]]]
    count = _git("rev-list", "--count", "--no-merges", f"{commit.removesuffix('-dirty')}..HEAD", "--", *rooms)
    return int(count) if count else None


def _git(*arguments: str) -> str:
    """Return what git prints, or "" where it fails."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=_ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def computer(machine: Mapping[str, Any]) -> str:
    """Return the name of the accelerator, or else of the processor, from the fields of a `Machine`."""
    without = ", without C functions" if machine.get("c_functions") is False else ""
    return machine.get("accelerator") or f"{machine['processor']}, {machine['threads']} threads{without}"


def _cell(text: str, language: str) -> str:
    for pattern, japanese in _JAPANESE_CELLS.items() if language == "ja" else ():
        text = re.sub(pattern, japanese, text)
    return text


@dataclass(frozen=True)
class Figures:
    """A table as a guide shows it."""

    headers: Mapping[str, Sequence[str]]
    """By language: `en`, `ja`."""
    rows: Sequence[Sequence[str]]
    command: str
    remark: Mapping[str, str] = field(default_factory=dict)
    """By language: what a reader must know beside the command, in brackets."""
    machine: Mapping[str, Any] = field(default_factory=lambda: describe_machine(default_device()).model_dump())
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    commit: str = field(default_factory=measured_commit)
    kind: str = KIND
    format: int = 1

    def table(self, language: str) -> Table:
        """Return the headers and the cells in this language."""
        return Table(list(self.headers[language]), [[_cell(text, language) for text in row] for row in self.rows])

    def write(self, file: Path) -> None:
        """Write the file atomically."""
        write_json(file, asdict(self))
