"""What to learn from a model's own answers that rules have scored: mean reward by processor time.

`python -m benchmarks.quality.rewards --model MODEL --data PROMPTS --held-out PROMPTS --reward RULE --out DIR`

Each run is one of `tsugiki train --reward`, and only what a round learns from its answers differs:

- `simpo`, `dpo`: the best against the worst answer to each prompt, with the likelihood of the best one,
- `best`: the best answer to each prompt alone, in as many passes,
- `advantage`: all answers, each weighted by (reward - mean) / standard deviation of the answers to its prompt. This is
  the loss of GRPO at its first step from the model that was asked, with one pass and without clipping. An answer that
  was cut off has no positive weight, because the model would learn to end there.

A variant can have a learning rate: `simpo=3e-4`. Each round is judged on the held-out prompts, which takes none of the
time that counts: the seconds are those of sampling, scoring and learning, from the first round on. The table has the
reward at given seconds, between two rounds on a straight line, with 95 % intervals over prompts of the means of all
seeds, and the difference to the first variant; and the seconds until a reward is reached, of each seed. Retention is
the loss on the retention text, relative to the base.

`--judge DIR`: answers of adapters that were trained elsewhere (`benchmarks.quality.rewards_trl`), in folders that are
called by their seconds, are scored in the same way. `--beside DIR`: they are in the table. What is finished in `--out`
is not repeated.

`--write DIR` writes the prompts and rules of runs by which what a run keeps was chosen, and ends: a numeral in a short
first sentence, the asked word (which is easily repeated), quoted speech, and a short answer that ends in a question.
`tsugiki train --data DIR/lit.jsonl --held-out DIR/lit_other.jsonl --reward DIR/numeral.py` is one of them; its report
has reward, forgetting and variety of each round and of parts of the last update.
"""

import argparse
import json
import math
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.figures import Figures
from tsugiki import evaluate
from tsugiki.data.read.answers import read_prompts
from tsugiki.data.records import NONE
from tsugiki.io.json import read_json, write_json
from tsugiki.preference.losses import LOSSES, Answers, PreferenceLoss
from tsugiki.preference.rewards import parse_rule
from tsugiki.preference.sampling import read_answers, write_prompts
from tsugiki.report.table import Table
from tsugiki.training.record.interval import mean_interval
from tsugiki.training.run import prepare, reward
from tsugiki.training.run.preference import answer_loss
from tsugiki.training.run.start import unwritten
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

HEADERS = {
    "en": ["learned", "rate", "CPU s", "mean reward", "each seed", "beside the first", "retention", "s until {}"],
    "ja": ["学習したもの", "学習率", "CPU 秒", "平均報酬", "シードごと", "先頭との差", "忘却", "{} までの秒数"],
}

NOUNS = (
    "川 山 海 空 月 星 花 雪 雨 風 火 水 石 木 森 道 橋 町 村 家 窓 庭 門 鏡 灯 舟 馬 犬 猫 鳥 魚 虫 蝶 蛙 梅 "
    "桜 松 竹 菊 桃 手紙 時計 帽子 電車 汽車 写真 新聞 眼鏡 着物 草履 火鉢 提灯 障子 畳 縁側 井戸 神社 寺 墓 "
    "学校 病院 停車場 港 島 谷 滝 池 湖 霧 霜 露 虹 雷 夕日 朝日 夜 春 夏 秋 冬 父 母 兄 妹 友人 先生 医者 "
    "商人 旅人 巡査 子供 老人 酒 茶 米 餅 塩 砂糖 林檎 蜜柑 西瓜 煙草 薬 金 夢 声 影 匂い 涙 笑い 病気 旅 祭 "
    "戦争 音楽 絵 本 詩"
)
TIMES = "その朝 ある夕方 昨夜 翌日 冬の初め 雨の日 日曜の午後 夜明け前 春の終り 夏の盛り 祭の晩 三日の後"
PEOPLE = "私は 彼は 父は 老人は 女は 少年は 母は 旅人は 友人は 先生は 医者は 妹は 和尚は 船頭は 車掌は"
PLACES = "町の外れで 古い家の前に 川のほとりで 駅の待合室で 山道を 座敷の隅に 窓の側で 寺の庭を 港の方へ 暗い廊下を"
SUBJECTS = (
    "rain;bread;the moon;bicycles;tea;cats;mountains;rivers;music;chess;trains;gardens;snow;books;birds;bees;bridges;"
    "clocks;coffee;dreams;fire;football;glass;gold;honey;ice;islands;kites;lamps;maps;milk;money;onions;paper;pianos;"
    "rice;roads;salt;sand;ships;shoes;silk;soap;spiders;stars;sugar;swimming;trees;volcanoes;whales;wind;wolves;wool;"
    "painting;poetry;running;sleep;apples;cheese;deserts"
)
FORMS = (
    "Tell me something about {}.",
    "What should I know about {}?",
    "Why do people like {}?",
    "I want to learn about {}.",
)
RULES = {
    "word": """
def reward(prompt, answer, word):
    return float(word in answer)
""",
    "numeral": """
import re

def reward(prompt, answer):
    first = re.match(r"[^。！？\\n]*[。！？]", answer.strip())
    if not first or not re.search("[一二三四五六七八九十百千]", first[0]):
        return 0.0
    return 1.0 if len(first[0]) <= 25 else 0.5
""",
    "speech": """
import re

def reward(prompt, answer):
    if not re.search("「([^「」]{3,40})」", answer):
        return 0.0
    return 1.0 if "。" in re.sub("「[^「」]*」", "", answer) else 0.5
""",
    "question": """
def reward(prompt, answer):
    return 0.5 * answer.strip().endswith("?") + 0.5 * (5 <= len(answer.split()) <= 40)
""",
}

NAMES = {
    "simpo": "pairs, SimPO",
    "dpo": "pairs, DPO",
    "advantage": "all, by advantage",
    "best": "best answers alone",
    "grpo": "TRL, GRPO",
    "online_dpo": "TRL, online DPO",
}


def main() -> None:
    """Run, judge, print the table, and write it with all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data")
    parser.add_argument("--held-out")
    parser.add_argument("--reward", action="append")
    parser.add_argument("--retention-data")
    parser.add_argument("--variants", nargs="*", default=["simpo", "dpo", "advantage", "best"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--at", type=float, nargs="*", default=[15, 30], help="seconds of the table")
    parser.add_argument("--until", type=float, default=0.9, help="reward of the last column")
    parser.add_argument("--judge", type=Path, help="folder of adapters, in place of runs")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="folders of adapters that were judged")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--write", type=Path, help="folder to write prompts and rules to, in place of runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.write:
        write_sets(options.write)
        return
    if options.judge:
        judge(options)
        return
    found = {name: [_run(options, name, seed) for seed in options.seeds] for name in options.variants}
    base = found[options.variants[0]][0]["points"][0]
    found |= {folder.name: [_judged_elsewhere(folder, base)] for folder in options.beside}
    rows = [row for seconds in options.at for row in _rows(found, seconds, options.until)]
    headers = {language: [one.format(options.until) for one in titles] for language, titles in HEADERS.items()}
    if len(options.seeds) == 1:  # the mean is that of the seed
        for cells in (*headers.values(), *rows):
            del cells[4]
    print(Table(headers["en"], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.quality.rewards {shlex.join(sys.argv[1:])}"
        Figures(headers, rows, command).write(options.figures)


def write_sets(folder: Path) -> None:
    """Write prompts and rules to a folder."""
    shuffle = random.Random(3).shuffle
    words = [{"prompt": f"お題「{word}」。一筆書きます。", "word": word} for word in NOUNS.split()]
    literary = [
        {"prompt": f"{time}、{person}{place}"}
        for time in TIMES.split()
        for person in PEOPLE.split()
        for place in PLACES.split()
    ]
    chat = [{"prompt": form.format(subject)} for subject in SUBJECTS.split(";") for form in FORMS]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows, learned, others in (("word", words, 96, 22), ("lit", literary, 160, 64), ("chat", chat, 160, 40)):
        shuffle(rows)
        for file, part in ((name, rows[:learned]), (f"{name}_other", rows[learned : learned + others])):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            (folder / f"{file}.jsonl").write_text("".join(lines), "utf-8")
    for name, text in RULES.items():
        (folder / f"{name}.py").write_text(text.lstrip(), "utf-8")


def _settings(options: argparse.Namespace, seed: int, rounds: int = 1) -> dict[str, Any]:
    numbers = {"rounds": rounds, "tokens": options.tokens, "forgetting": 99}
    return {
        "model": options.model, "data": options.data, "held_out": options.held_out, "validation": NONE, "seed": seed,
        "reward": options.reward, "reward_settings": numbers, "retention_data": options.retention_data,
    }  # fmt: skip


def judge(options: argparse.Namespace) -> None:
    """Print the seconds and the mean reward of each adapter in a folder, and write them into it."""
    folders = sorted((one for one in options.judge.iterdir() if one.name.isdigit()), key=lambda one: int(one.name))
    texts = options.judge / "prompts.jsonl"
    write_prompts(texts, read_prompts(options.held_out))
    base, *after = (
        one.loss for one in evaluate(str(texts), model=options.model, adapter=[*map(str, folders)]).values()
    )
    found = []
    for folder, loss in zip(folders, after, strict=True):
        settings = {**_settings(options, 1), "start_from": str(folder), "out": str(options.out)}
        config = validated(RunConfig, {name: value for name, value in settings.items() if value is not None}, None)
        judged = reward.open_rounds(unwritten(config), [parse_rule(text) for text in options.reward]).judge(0)
        found.append({"seconds": int(folder.name), "held_out": judged.held_out, "retention": loss / base})
        low, high = mean_interval(judged.held_out) or (math.nan, math.nan)
        mean = statistics.fmean(judged.held_out)
        print(f"{folder.name} s: {mean:.3f} [{low:.3f}, {high:.3f}], retention {loss / base - 1:+.1%}", flush=True)
    write_json(options.judge / "judged.json", {"points": found})


def _judged_elsewhere(folder: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Return what `judge` has written as a run's points, the base as the first one."""
    points = [base]
    for one in read_json(folder / "judged.json")["points"]:
        before = sum(sum(point["seconds"].values()) for point in points)
        points.append({**one, "seconds": {"training": one["seconds"] - before}})
    return {"points": points, "rate": folder.name.partition("=")[2]}


def _run(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Train, unless that was done before, and return seconds, rewards, retention and characters after each round."""
    variant, _, rate = name.partition("=")
    file = options.out / f"{name} {seed}.json"
    if not file.exists():
        options.out.mkdir(parents=True, exist_ok=True)
        settings = {**_settings(options, seed, options.rounds), "out": str(options.out / f"{name} {seed}")}
        settings |= {"learning_rate": float(rate)} if rate else {}
        settings |= {"preference": variant} if variant in ("simpo", "dpo") else {}
        config = validated(RunConfig, {key: value for key, value in settings.items() if value is not None}, None)
        before = time.process_time()
        with Learned(variant):
            record = reward.train_by_reward(config, overwrite=True)
        points = [
            {
                "seconds": one.seconds,
                "held_out": one.held_out,
                "retention": one.retention or 1.0,
                "length": one.length,
                "pairs": one.learned.pairs,
            }
            for one in record.rounds
        ]
        chosen = record.resolved_settings.get("learning_rate", record.config.to_dict().get("learning_rate"))
        write_json(file, {"points": points, "rate": chosen, "process": time.process_time() - before})
    return dict(read_json(file))


class Learned:
    """What the rounds of runs learn, while it is entered."""

    def __init__(self, variant: str) -> None:
        self.variant, self.weights = variant, torch.zeros(0)
        self.patched = [(reward.Rounds, "settings_of_pairs"), (prepare, "answer_loss")]
        self.before = [getattr(owner, name) for owner, name in self.patched]

    def __enter__(self) -> None:
        if self.variant == "best":
            setattr(*self.patched[0], lambda rounds, number: self._best(rounds, number))
        elif self.variant == "advantage":
            setattr(*self.patched[0], lambda rounds, number: self._all(rounds, number))
            setattr(*self.patched[1], self._loss)

    def __exit__(self, *_error: object) -> None:
        for (owner, name), value in zip(self.patched, self.before, strict=True):
            setattr(owner, name, value)

    def _best(self, rounds: Any, number: int) -> RunConfig:
        settings = self.before[0](rounds, number).model_dump(mode="json", exclude_unset=True)
        return validated(RunConfig, {**settings, "preference": None, "columns": {"completion": "chosen"}}, None)

    def _all(self, rounds: Any, number: int) -> RunConfig:
        """Write all answers with their weights, and return the settings that learn them."""
        settings = self.before[0](rounds, number).model_dump(mode="json", exclude_unset=True)
        rows, weights = [], []
        for one in read_answers(rounds.path(f"{number}.answers.jsonl")):
            scored = [answer for answer in one.answers if answer.reward is not None and answer.text.strip()]
            rewards = np.array([answer.reward for answer in scored])
            for answer, weight in zip(scored, (rewards - rewards.mean()) / (rewards.std() + 1e-4), strict=True):
                used = float(weight) if answer.is_whole else min(float(weight), 0.0)
                if used:
                    rows.append({"prompt": one.row.prompt, "completion": answer.text, "label": used > 0})
                    weights.append(used)
        file = rounds.path(f"{number}.weighted.jsonl")
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        self.weights = torch.tensor(weights)
        more = {"data": str(file), "preference": "kto", "epochs": 1, "preference_settings": {}}
        return validated(RunConfig, {**settings, **more}, None)

    def _loss(self, config: RunConfig, answers: Any) -> Any:
        """Return the loss of weighted answers; the weights take the place of the reference, which it does not need."""
        loss = answer_loss(config, answers)
        assert len(loss.rows.preferences.good) == len(self.weights), "an answer was left out"
        loss.loss, loss.settings, loss.likelihood = _WEIGHTED, {}, 0.0
        loss.reference = self.weights
        return loss


def _weighted(good: Answers, bad: Answers) -> torch.Tensor:
    # -w log π(y) / |y|
    return torch.cat([-one.reference * one.per_token for one in (good, bad)])  # type: ignore[operator]


_WEIGHTED = PreferenceLoss(_weighted, needs_reference=False, score=LOSSES["simpo"].score)


def _rows(found: dict[str, list[dict[str, Any]]], seconds: float, until: float) -> list[list[str]]:
    rows, first = list[list[str]](), np.array(0.0)
    for name, runs in found.items():
        at = [_at(one["points"], seconds) for one in runs]
        rewards, forgotten = np.array([one[0] for one in at]), statistics.fmean(one[1] for one in at) - 1
        first = rewards.mean(0) if not rows else first
        low, high = mean_interval(rewards.mean(0).tolist()) or (math.nan, math.nan)
        change = (rewards.mean(0) - first).tolist()
        least, most = mean_interval(change) or (math.nan, math.nan)
        rows.append(
            [
                NAMES.get(name.partition("=")[0], name),
                ", ".join(sorted({f"{one['rate']}" for one in runs})),
                f"{seconds:g}",
                f"{rewards.mean():.3f} [{low:.3f}, {high:.3f}]",
                ", ".join(f"{one.mean():.3f}" for one in rewards),
                f"{statistics.fmean(change):+.3f} [{least:+.3f}, {most:+.3f}]" if rows else "",
                f"{forgotten:+.1%}",
                ", ".join(_until(one["points"], until) for one in runs),
            ]
        )
    return rows


def _times(points: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
    return np.cumsum([sum(one["seconds"].values()) - one["seconds"].get("judging", 0.0) for one in points])


def _at(points: Sequence[dict[str, Any]], seconds: float) -> tuple[list[float], float]:
    """Return the rewards and the retention at a time: on a line between two rounds; after the last one, its own."""
    rewards = np.array([one["held_out"] for one in points]).T
    found = [float(np.interp(seconds, _times(points), one)) for one in (*rewards, [one["retention"] for one in points])]
    return found[:-1], found[-1]


def _until(points: Sequence[dict[str, Any]], reward: float) -> str:
    """Return the seconds until the mean reward is reached, on a line between two rounds."""
    times, means = _times(points), [statistics.fmean(one["held_out"]) for one in points]
    for place, (before, after) in enumerate(pairwise(means)):
        if after >= reward:
            return f"{np.interp(reward, [before, after], times[place : place + 2]):.0f}"
    return f"not in {times[-1]:.0f}"


if __name__ == "__main__":
    main()
