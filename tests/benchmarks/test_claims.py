"""Figures in sentences of README and the guides are those of the committed results, rounded as they are written."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Claim(NamedTuple):
    """A sentence in both languages, with a group for each figure, and what these figures are."""

    page: str
    english: str
    japanese: str
    values: tuple[float, ...]


def rows_of(file: str) -> list[Any]:
    return list(json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))["rows"])


def cell(file: str, *beginning: str) -> float:
    """The last cell of the row that begins so."""
    (row,) = [row for row in rows_of(file) if row[: len(beginning)] == [*beginning]]
    return float(row[-1])


def speed(server: str, requests: str) -> float:
    """Tokens for a second of processor time."""
    (row,) = [row for row in rows_of("zen4/serving_peers.json") if row[:2] == [server, requests]]
    return float(row[2])


def run(command: str, machine: str = "zen5") -> list[float]:
    """The figures of a run of a guide: before, after, the change with its interval, the processor seconds."""
    (row,) = [row for row in rows_of(f"{machine}/guide_runs.json") if row[0] == f"`{command}`"]
    return [float(re.findall(r"[-+]?[\d.]+", text)[0]) for text in (*row[1:3], *row[3].split(), row[4])]


STEPS = {row["name"]: row for row in rows_of("zen5/gpt2-small.json")}
BEST, DOCUMENTED, BF16, INT8 = (
    STEPS[name]["tokens_per_second"] for name in ("peft-bf16-malloc", "peft-bf16", "tsugiki-bf16", "tsugiki-int8")
)
INT8_MEMORY, BF16_MEMORY = (
    100 * STEPS[name]["above_loaded"] / STEPS["peft-bf16-malloc"]["above_loaded"]
    for name in ("tsugiki-int8", "tsugiki-bf16")
)
ERRORS = [float(row[-1].rstrip("%")) for row in rows_of("zen5/planning_unfitted.json")]
ALONE, EACH = "1 on the base", "8, each on an adapter of its own"
BESIDE_PEERS = (
    speed("tsugiki serve, bf16", EACH) / speed("llama.cpp's server, bf16", EACH),
    speed("tsugiki serve, int8", EACH) / speed("llama.cpp's server, q8_0", EACH),
    speed("llama.cpp's server, bf16", ALONE) / speed("tsugiki serve, bf16", ALONE),
    speed("llama.cpp's server, q8_0", ALONE) / speed("tsugiki serve, int8", ALONE),
)
FORGOTTEN = {row[0]: float(re.findall(r"\((\S+)%", row[-1])[0]) for row in rows_of("zen5/replay.json")}
BEFORE, AFTER, *INTERVAL, SECONDS = run("quickstart")
FACTS, JAPANESE_FACTS = (run(f"quickstart --questions --lang {language}", "amx") for language in ("en", "ja"))
AUTHOR, SUPPORT = run("train --data kyoka.jsonl"), run("train --data support.csv", "amx")
POLITE = run("train --reward polite.py --data beginnings.jsonl", "amx")
BY_RANK = {row[0]: float(row[5].split()[2]) for row in rows_of("zen5/comparing_methods.json")}
(NF4,) = [
    float(row[-1].split("%")[0]) for row in rows_of("zen5/base_quality.json") if row[:2] == ["smollm2, chat_en", "nf4"]
]
TYPES = re.search(r"\| causal \| (\d+) \| (\d+) \|", (ROOT / "docs" / "models.md").read_text(encoding="utf-8"))
assert TYPES

CLAIMS = [
    Claim("README", r"no download: in (\S+) s of processor time", r"CPU 時間 (\S+) 秒で覚えます", (SECONDS,)),
    Claim(
        "docs/commands",
        r"in (\S+) s of processor time \(AMD.* need (\S+) bits per character instead of (\S+) .*: (\S+) to (\S+) %",
        r"CPU 時間は (\S+) 秒[^|]*1 文字あたり (\S+) ビット（学習前は (\S+) ビット、.* (\S+)〜(\S+) %）",
        (SECONDS, AFTER, BEFORE, *INTERVAL[1:]),
    ),
    Claim("README", r"style\]\(\S+\): after (\S+) s of processor time", r"学習は CPU 時間 (\S+) 秒です", (AUTHOR[-1],)),
    Claim(
        "README",
        r"For 泉鏡花, bits per character change by (\S+) % \(\[95 % interval\]\(\S+\) (\S+) to (\S+) %\)",
        r"泉鏡花の例では、ビット/文字の変化は (\S+) %（\[95 % 信頼区間\]\(\S+\) (\S+)〜(\S+) %）",
        tuple(AUTHOR[2:5]),
    ),
    Claim(
        "docs/tutorial-author",
        r"needs (\S+) % fewer bits per character \(95 % interval (\S+) to (\S+) %\)",
        r"ビット数はベースモデルより (\S+) % 少なくなりました（95 % 信頼区間 (\S+)〜(\S+) %）",
        (-AUTHOR[2], -AUTHOR[4], -AUTHOR[3]),
    ),
    Claim(
        "README",
        r"(\S+) of 50 new questions are answered correctly after (\S+) s",
        r"正解は 50 問中 (\S+) 問です（1 スレッドで CPU 時間 (\S+) 秒）",
        (SUPPORT[1], SUPPORT[-1]),
    ),
    Claim(
        "docs/tutorial-questions",
        r"runs/support │ a conversation │ (\S+) of 50",
        r"runs/support │ 会話     │ 50 中 (\S+)",
        (SUPPORT[1],),
    ),
    Claim(
        "README",
        r"answers (\S+) of 20 questions correctly.* one thread: (\S+) s of",
        r"学習後は (\S+) 問に.*パン屋では (\S+) 秒",
        (FACTS[1], FACTS[-1]),
    ),
    Claim("README", r"(\S+) s for the Japanese library", r"CPU 時間 (\S+) 秒、英語", (JAPANESE_FACTS[-1],)),
    Claim(
        "docs/reward",
        r"held-out prompts \(24\) is (?=\S+ instead of (\S+):)(\S+) .*?: (\S+) \(95 % interval (\S+) to (\S+)\)",
        r"（24 件）の平均報酬は (\S+) から (\S+) になりました：(\S+)（95 % 信頼区間 (\S+)〜(\S+?)）",
        tuple(POLITE[:5]),
    ),
    Claim(
        "README",
        r"\[(\S+) times as fast as PEFT\].*in 8 bits; (\S+) times .*\[(\d+) % of its memory\].*\(bf16: (\d+) %\)",
        r"PEFT の最速の設定の (\S+) 倍の速さ\].*8 ビットの場合.* (\S+) 倍.*メモリは PEFT の (\d+) %\].*では (\d+) %）",
        (INT8 / BEST, BF16 / BEST, INT8_MEMORY, BF16_MEMORY),
    ),
    Claim(
        "README",
        r"in 8 bits trains (\S+) times .*, (\S+) times as PEFT's .*; both in bf16, (\S+) and (\S+) times",
        r"8 ビットの GPT-2 small .*の (\S+) 倍、.*の (\S+) 倍の速さです。どちらも bf16 なら (\S+) 倍と (\S+) 倍",
        (INT8 / BEST, INT8 / DOCUMENTED, BF16 / BEST, BF16 / DOCUMENTED),
    ),
    Claim(
        "README",
        r"\[together\]\(\S+\) are (\S+) times as fast",
        r"\[まとめて処理\]\(\S+\)すると (\S+) 倍",
        (cell("zen5/serving.json", "gpt2-small", "ratio: 8 adapters together beside in turns"),),
    ),
    Claim(
        "README",
        r"(?=\d+ of (\d+))(\d+) of \d+ \[types of causal models\]",
        r"\[因果言語モデル\]\(\S+\)は (\d+) 種のうち (\d+) 種が",
        tuple(map(float, TYPES.groups())),
    ),
    Claim("docs/memory", r"`nf4` is (\S+) % worse on SmolLM2", r"SmolLM2-135M で (\S+) % 悪く", (NF4,)),
    Claim(
        "docs/comparing",
        r"32 times the rank lowers the loss by (\d+\.\d)",
        r"32 倍にしても損失は (\S+) しか",
        (BY_RANK["LoRA r=1"] - BY_RANK["LoRA r=32"],),
    ),
    Claim(
        "docs/training-evidence",
        r"forgotten \((\S+) instead of (\S+) %\)",
        r"（(\S+) %。混ぜないと (\S+) %）",
        (FORGOTTEN["10%"], FORGOTTEN["0%"]),
    ),
    Claim(
        "docs/benchmarks",
        r"The plan errs by (\S+) to (\S+) %",
        r"誤差は (\S+)〜(\S+) % です",
        (min(ERRORS), max(ERRORS)),
    ),
    Claim(
        "docs/benchmarks",
        r"Tsugiki is (\S+) to (\S+) times as fast. .* llama.cpp is (\S+) times .* and (\S+) times in 8 bits",
        r"Tsugiki が (\S+)〜(\S+) 倍速く.*bf16 で (\S+) 倍、8 ビットで (\S+) 倍",
        BESIDE_PEERS,
    ),
]


@pytest.mark.parametrize("ending", [".md", ".ja.md"])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.english)
def test_a_sentence_has_the_figures_of_its_file(claim: Claim, ending: str):
    text = (ROOT / f"{claim.page}{ending}").read_text(encoding="utf-8")
    found = re.search(claim.english if ending == ".md" else claim.japanese, text)
    assert found, "the sentence has changed: change its pattern"
    written = [figure.replace("−", "-") for figure in found.groups()]
    decimals = [len(figure.partition(".")[2]) for figure in written]
    signs = ["+" if figure.startswith("+") else "" for figure in written]
    assert written == [f"{value:{sign}.{n}f}" for value, sign, n in zip(claim.values, signs, decimals, strict=True)]
