"""Runs that learn by a reward: what is stored, what is kept, and what stops them; after a kill they are the same."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import tsugiki
from tests.runs import interrupt, run_config
from tests.tiny import TEXT
from tsugiki import TsugikiError
from tsugiki.cli.train import resumed_settings
from tsugiki.io import ADAPTER_FILE
from tsugiki.preference import sampling
from tsugiki.report import report_page
from tsugiki.training import RunConfig, RunRecord, train
from tsugiki.training.record.rewards import RewardRound, best_round
from tsugiki.training.record.run_record import read_record
from tsugiki.training.run import reward as reward_run
from tsugiki.training.run.reward import train_by_reward
from tsugiki.training.settings.config import RewardSettings
from tsugiki.training.settings.files import load_config

RULE = "def reward(prompt, answer):\n    return sum(map(str.islower, answer)) / max(len(answer), 1)\n"
RANDOM = "import random\ndef reward(prompt, answer):\n    return random.random()\n"


@pytest.fixture(autouse=True)
def _whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model never ends a text, so what is cut off is taken as it is."""
    monkeypatch.setattr(sampling, "_SENTENCES", re.compile(".*", re.DOTALL))


def prompts(folder: Path, count: int = 20) -> str:
    path = folder / f"prompts-{count}.jsonl"
    rows = [{"prompt": f"{number} {TEXT[number * 9 : number * 9 + 5]}", "right": number} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rule(folder: Path, text: str = RULE) -> str:
    path = folder / "rule.py"
    path.write_text(text)
    return str(path)


def config(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    settings = {
        "rounds": 2,
        "samples": 3,
        "tokens": 6,
        "temperature": 1,
        "forgetting": 9,
        **changes.pop("settings", {}),
    }
    given = {"data": prompts(folder), "reward_settings": settings, "block_size": 64}
    given["reward"] = changes.pop("reward", None) or [rule(folder)]
    more = {"max_steps": 2, "save_steps": 1, "lora": {"r": 4}, "validation": "auto", "held_out": "auto", "prompts": []}
    return run_config(folder, out, **{**given, **more, **changes})


def test_rounds_are_asked_learned_and_judged_and_the_best_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_run, "best_round", lambda rounds, most: 1)
    record = train_by_reward(config(tmp_path))
    first, *learned = record.rounds
    assert [one.round for one in record.rounds] == [0, 1, 2]
    assert [len(first.held_out), len(first.validation), first.learned.drawn] == [4, 4, 0]
    assert all(one.learned.drawn == 12 and one.learned.answers == 36 and one.learned.pairs > 0 for one in learned)
    assert all(
        one.retention != 1 and list(one.seconds) == ["sampling", "scoring", "learning", "judging"] for one in learned
    )
    out, rounds = tmp_path / "run", tmp_path / "run" / "rounds"
    assert (out / ADAPTER_FILE).read_bytes() == (rounds / "1" / ADAPTER_FILE).read_bytes()
    assert read_record(rounds / "2").config.to_dict()["start_from"] == str(rounds / "1")
    retained = [json.loads(line)["text"] for line in (rounds / "retention.jsonl").read_text().splitlines()]
    asked = [json.loads(line) for line in (rounds / "1.answers.jsonl").read_text().splitlines()]
    assert len(retained) == 8
    assert not {*retained} & {row["prompt"] for row in asked}
    pairs = [json.loads(line) for line in (rounds / "1.pairs.jsonl").read_text().splitlines()]
    assert len(asked) == 12
    assert len(pairs) == learned[0].learned.pairs
    by_prompt = {row["prompt"]: {one["text"]: one["reward"] for one in row["answers"]} for row in asked}
    for row in pairs:
        rewards = by_prompt[row["prompt"]]
        assert [rewards[row["chosen"]], rewards[row["rejected"]]] == row["scores"]
        assert row["scores"][0] > row["scores"][1] == min(rewards.values())
    page = report_page(read_record(out), out)
    assert "Reward by round" in page
    assert "1, kept" in page
    assert "held-out prompts (4) is" in page


@pytest.mark.parametrize("where", ["asking", "learning", "judging"])
def test_a_run_that_is_killed_ends_with_the_same_bytes(where: str, tmp_path: Path):
    """Also with a rule that scores at random."""
    changes = {"reward": [rule(tmp_path, RANDOM)], "validation": "none", "held_out": "none"}
    train_by_reward(config(tmp_path, "whole", **changes))
    again = config(tmp_path, "cut", **changes)
    if where == "learning":
        interrupt(train_by_reward, again, 1)
    else:
        name = {"asking": "write_answers", "judging": "_judged"}[where]
        with pytest.MonkeyPatch.context() as patch:
            owner = reward_run._Rounds if where == "judging" else reward_run
            patch.setattr(owner, name, _interrupted_at(getattr(owner, name), 2))
            with pytest.raises(KeyboardInterrupt):
                train_by_reward(again)
    train_by_reward(again, resume=True)
    for name in (ADAPTER_FILE, "rounds/1.answers.jsonl", "rounds/2.pairs.jsonl", f"rounds/1/{ADAPTER_FILE}"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def _interrupted_at(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls: list[object] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments)

    return interrupted


def test_a_finished_run_goes_on_with_more_rounds(tmp_path: Path):
    whole = train_by_reward(config(tmp_path, "whole", validation="none"))
    train_by_reward(config(tmp_path, validation="none", settings={"rounds": 1}))
    with pytest.raises(TsugikiError, match="after round 1;"):
        train_by_reward(config(tmp_path, validation="none", settings={"rounds": 1}), resume=True)
    longer = train_by_reward(config(tmp_path, validation="none"), resume=True)
    assert [one.held_out for one in longer.rounds] == [one.held_out for one in whole.rounds]
    assert (tmp_path / "run" / ADAPTER_FILE).read_bytes() == (tmp_path / "whole" / ADAPTER_FILE).read_bytes()


def test_the_best_round_has_not_forgotten_too_much():
    def rounds(*worth: tuple[float, float]) -> list[RewardRound]:
        return [
            RewardRound(round=n, held_out=[], validation=[one], length=1, distinct=1, samples=[], retention=forgotten)
            for n, (one, forgotten) in enumerate(worth)
        ]

    assert best_round(rounds((0.1, 1.0), (0.5, 1.05), (0.5, 1.0), (0.9, 1.2)), 0.1) == 1
    assert best_round(rounds((0.1, 1.0), (0.9, 1.2)), 0.1) == 0
    unmeasured = [one.model_copy(update={"validation": []}) for one in rounds((0, 1.0), (0, 1.0), (0, 1.2))]
    assert best_round(unmeasured, 0.1) == 1


def test_prompts_that_teach_nothing_are_drawn_less_often(tmp_path: Path):
    """The rule is the same for all answers to the second half of the prompts."""
    text = "def reward(prompt, answer, right):\n    return len(answer.encode()) * (right < 10)\n"
    changes = {"reward": [rule(tmp_path, text)], "validation": "none", "held_out": "none"}
    train_by_reward(config(tmp_path, **changes, settings={"rounds": 2, "prompts": 10, "samples": 6}))
    drawn = [
        [json.loads(line)["fields"]["right"] for line in (tmp_path / f"run/rounds/{n}.answers.jsonl").open()]
        for n in (1, 2)
    ]
    before, after = (sum(one >= 10 for one in rows) for rows in drawn)
    assert [len(set(rows)) for rows in drawn] == [10, 10]
    assert after < before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ["regex:no such text"]}, "score alike.*1.answers.jsonl"),
        ({"reward": ["field:absent"]}, "no rule applies to any of the 36 answers"),
        ({"validation": 0.6, "held_out": 0.6}, "no prompts are left"),
    ],
)
def test_what_teaches_nothing_ends_a_run_before_its_first_step(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(TsugikiError, match=message):
        train_by_reward(config(tmp_path, **changes))
    assert not list(tmp_path.glob(f"run/**/{ADAPTER_FILE}"))


def test_one_prompt_suffices_and_a_rule_that_no_answer_reaches_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rules = [rule(tmp_path), "regex:no such text"]
    record = train_by_reward(config(tmp_path, data=prompts(tmp_path, 1), reward=rules, settings={"rounds": 1}))
    assert record.rounds[1].learned.pairs == 1
    assert record.kept_round == 1
    assert "regex:no such text gives 0.0 to all answers" in capsys.readouterr().err


def test_no_adapter_is_left_where_no_round_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_run, "best_round", lambda rounds, most: 0)
    with pytest.raises(TsugikiError, match=r"no round.*900% more.*rounds"):
        train_by_reward(config(tmp_path, settings={"rounds": 1}))
    assert not (tmp_path / "run" / ADAPTER_FILE).exists()
    assert read_record(tmp_path / "run").kept_round == 0
    assert report_page(read_record(tmp_path / "run"), tmp_path / "run")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_learning_rate_that_forgets_too_much_is_lowered_for_all_rounds(interrupted: bool, tmp_path: Path):
    never = RewardSettings.model_construct(**{**config(tmp_path).to_record()["reward_settings"], "forgetting": -0.99})
    given = config(tmp_path, learning_rate="auto", validation="none", held_out="none")
    lowered = given.model_copy(update={"reward_settings": never})
    if interrupted:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reward_run._Rounds, "_learned", _interrupted_at(reward_run._Rounds._learned, 2))
            with pytest.raises(KeyboardInterrupt):
                train_by_reward(lowered)
    with pytest.raises(TsugikiError, match="no round"):
        train_by_reward(lowered, resume=interrupted)
    rates = [read_record(one).chosen("learning_rate") for one in (tmp_path / "run/rounds").glob("too-high-*")]
    last = [read_record(tmp_path / "run/rounds" / name).chosen("learning_rate") for name in ("1", "2")]
    assert last == [pytest.approx(max(rates) / 5 ** len(rates))] * 2
    assert last[0] < 1e-5 <= min(rates)


def test_a_changed_rule_is_named(tmp_path: Path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_run, "write_answers", _interrupted_at(reward_run.write_answers, 2))
        with pytest.raises(KeyboardInterrupt):
            train_by_reward(config(tmp_path))
    changed = config(tmp_path, reward=[rule(tmp_path, RANDOM)])
    with pytest.raises(TsugikiError, match=r"rules have changed.*rule\.py"):
        train_by_reward(changed, resume=True)


def test_programs_run_only_if_the_command_names_them(tmp_path: Path):
    path, out = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({"model": "embedded", "data": "p", "out": "o", "reward": [rule(tmp_path)]}))
    with pytest.raises(TsugikiError, match=r"run\.yaml.*rule\.py"):
        load_config(path, {})
    assert load_config(path, {"reward": ["regex:a"]}).reward == ("regex:a",)
    train_by_reward(config(tmp_path, settings={"rounds": 1}, validation="none"))
    with pytest.raises(TsugikiError, match="only the command"):
        resumed_settings(out, {}, None)
    assert resumed_settings(out, {"reward": [rule(tmp_path)]}, None).reward == (rule(tmp_path),)


@pytest.mark.parametrize(
    "changes",
    [{"minutes": 1, "max_steps": None}, {"preference": "kto"}, {"method": "full", "lora": {}}, {"mix": "a:0.1"}],
)
def test_settings_that_do_not_belong_to_a_reward_are_errors(changes: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be combined"):
        config(tmp_path, **changes)


def test_other_runs_take_no_reward(tmp_path: Path):
    with pytest.raises(TsugikiError, match="tsugiki train"):
        train(config(tmp_path))


def test_pairs_are_written_once_as_a_round_writes_them(tmp_path: Path):
    run = config(tmp_path, validation="none", held_out="none")
    settings = run.model_dump(exclude_unset=True, exclude={"out"})
    counted = tsugiki.pairs(out=str(tmp_path / "pairs.jsonl"), **settings)
    assert counted.drawn == 20
    train_by_reward(run)
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "run/rounds/1.pairs.jsonl").read_bytes()
    learned: RunRecord = tsugiki.train(
        **{**settings, "reward": (), "reward_settings": None, "data": str(tmp_path / "pairs.jsonl")},
        out=str(tmp_path / "learned"),
    )
    assert learned.data is not None
    with pytest.raises(TsugikiError, match="exists"):
        tsugiki.pairs(out=str(tmp_path / "pairs.jsonl"), **settings)
