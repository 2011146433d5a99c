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

_ZEN_3_AND_4, _ZEN_5 = 25, 26  # families of processors
_MODELS_OF_ZEN_4 = (1, 6, 7, 10)  # upper half of the number of a model: Genoa, Raphael, Phoenix, Bergamo

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
    r"not in (\d+)": r"\1 秒では未達",
    r"^([\d,]+) of (\d+)$": r"\2 のうち \1",
    r"^mean change$": "変化の平均",
    r"^mean change, authors that chose$": "変化の平均（選択に使った著者）",
    r" points$": " ポイント",
    r"^all authors, ": "すべての作家、",
    r", modern kana$": "、新仮名",
    r", old kana$": "、旧仮名",
    r" \(at most ([-+\d.%]+)\)": r"（最大 \1）",
    r"^the last step$": "最後のステップ",
    r"^the last step, at its strength$": "最後のステップ（強さを選ぶ）",
    r"^the last step that is not certainly above the lowest one$": (
        "最低のステップより確かに高いとは言えない、最後のステップ"
    ),
    r"^the lowest step$": "最低のステップ",
    r"^step and strength, if certainly below the lowest step$": "最低のステップより確かに低ければ、そのステップと強さ",
    r"^step and strength with the lowest loss \(the rule\)$": "損失が最も低いステップと強さ（この規則を使う）",
    r": tokens/s of processor and wall time$": "：トークン/秒（CPU 時間、実時間）",
    r": median seconds$": "：秒数の中央値",
    r"^(\d+) on the base, no adapter loaded": r"ベースモデルに \1 件、アダプターの読み込みなし",
    r"^(\d+) on the base": r"ベースモデルに \1 件",
    r"^(\d+) on (\d+) adapters, one static batch": r"\2 個のアダプターに \1 件、一つの固定バッチ",
    r"^(\d+) on (\d+) adapters": r"\2 個のアダプターに \1 件",
    r"^(\d+) adapters in turns": r"\1 個のアダプターに 1 件ずつ順に",
    r"^(\d+), each on an adapter of its own$": r"別々のアダプターに \1 件",
    r"^ratio: adapters in memory beside none, on the base$": "比：アダプターの読み込みの有無（ベースモデル）",
    r"^ratio: (\d+) adapters beside the base$": r"比：\1 個のアダプターとベースモデル",
    r"^ratio: (\d+) adapters together beside in turns$": r"比：\1 個のアダプターをまとめて処理、順に処理",
    r"^ratio: (\d+) adapters beside one static batch$": r"比：\1 個のアダプターと、一つの固定バッチ",
    r"^first token of a prompt of (\d+), alone": r"\1 トークンのプロンプトの最初のトークン、単独",
    r"^first token of a prompt of (\d+), beside (\d+) requests and a prompt of (\d+) tokens": (
        r"同上、ほかに \2 件のリクエストと \3 トークンのプロンプト"
    ),
    r"^first answer of one token of an adapter that is not in memory": "メモリにないアダプターの最初の 1 トークン",
    r"^the same of one in memory$": "同上、メモリにあるアダプター",
    r"^seconds until it answers$": "応答できるまでの秒数",
    r"^idle for (\d+) s: seconds of processor time$": r"\1 秒の待機：CPU 時間の秒数",
    r"^idle for (\d+) s: wake-ups$": r"\1 秒の待機：スレッドが起きた回数",
    r"^llama.cpp's server, ": "llama.cpp のサーバー、",
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


def this_machine() -> dict[str, Any]:
    """Return the fields of this machine's `Machine`, and the generation of its processor."""
    try:
        generation = zen(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        generation = None
    return {**describe_machine(default_device()).model_dump(), "generation": generation}


def zen(cpuinfo: str) -> str | None:
    """Return the generation of an AMD processor, which its name does not tell; None: another processor.

    Args:
        cpuinfo: the text of /proc/cpuinfo.
    """
    fields = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (\w+)$", cpuinfo, re.MULTILINE))
    if fields.get("vendor_id") != "AuthenticAMD":
        return None
    family = int(fields["cpu family"])
    if family == _ZEN_3_AND_4:
        return "Zen 4" if int(fields["model"]) // 16 in _MODELS_OF_ZEN_4 else "Zen 3"
    return "Zen 5" if family == _ZEN_5 else None


def computer(machine: Mapping[str, Any]) -> str:
    """Return the name of the accelerator, or else of the processor, from what `this_machine` returned."""
    generation = f" ({machine['generation']})" if machine.get("generation") else ""
    without = ", without C functions" if machine.get("c_functions") is False else ""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return machine.get("accelerator") or f"{machine['processor']}{generation}, {threads}{without}"


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
    machine: Mapping[str, Any] = field(default_factory=this_machine)
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
