"""Runs that learn by a reward: what is stored, what is kept, and what stops them; after a kill they are the same."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tsugiki
from tests.errors import refused
from tests.files import rows_of, write_rows
from tests.report.pages import record as a_record
from tests.runs import run_config, tiny_base
from tests.tiny import TEXT
from tsugiki.adapters.algebra.matrices import matrices
from tsugiki.adapters.lora_weights import read_lora_weights
from tsugiki.cli.adapters import combine_command
from tsugiki.cli.train import resumed_settings
from tsugiki.io import ADAPTER_FILE
from tsugiki.preference import sampling
from tsugiki.report import report_page
from tsugiki.report.rewards import reward_parts
from tsugiki.report.sections import Sentence
from tsugiki.training import RunConfig, TrainingLoop, train
from tsugiki.training.data.divide import split_prompts
from tsugiki.training.record.result import RewardRound, choose_round, still_gains
from tsugiki.training.record.run_record import read_record
from tsugiki.training.run import reward as reward_run
from tsugiki.training.run.reward import train_by_reward
from tsugiki.training.settings.files import load_config

RULE = "def reward(prompt, answer):\n    return sum(map(str.islower, answer)) / max(len(answer), 1)\n"
RANDOM = "import random\ndef reward(prompt, answer):\n    return random.random()\n"
ALL_LEARNED = {"validation": "none", "held_out": "none"}


@pytest.fixture(scope="module", autouse=True)
def _whole_answers() -> Iterator[None]:
    """The tiny model never ends a text, so what is cut off is taken as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_SENTENCES", re.compile(".*", re.DOTALL))
        yield


def prompts(folder: Path, count: int = 20) -> str:
    rows = [{"prompt": f"{number} {TEXT[number * 9 : number * 9 + 5]}", "right": number} for number in range(count)]
    return write_rows(folder / f"prompts-{count}.jsonl", rows)


def rule(folder: Path, text: str = RULE) -> str:
    path = folder / "rule.py"
    path.write_text(text)
    return str(path)


def config(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    settings = {"rounds": 2, "samples": 3, "tokens": 6, "temperature": 1, "forgetting": 9}
    settings |= changes.pop("settings", {})
    given = {"data": prompts(folder), "reward_settings": settings, "block_size": 64}
    given["reward"] = changes.pop("reward", None) or [rule(folder)]
    more = {"max_steps": 2, "save_steps": 1, "lora": {"r": 4}, "validation": "auto", "held_out": "auto", "prompts": []}
    return run_config(folder, out, **{**given, **more, **changes})


def random_config(folder: Path, out: str, **changes: Any) -> RunConfig:
    """Of a run by a rule that scores at random."""
    return config(folder, out, **{"reward": [rule(folder, RANDOM)], **ALL_LEARNED, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `random_config`'s run of two rounds, `whole`."""
    folder = tmp_path_factory.mktemp("reward")
    train_by_reward(random_config(folder, "whole"))
    return folder


def test_rounds_are_asked_learned_and_judged_and_the_best_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(reward_run, "choose_round", lambda judged, most: judged[1])
    record = train_by_reward(config(tmp_path))
    first, *learned = record.rounds
    assert [len(first.held_out), len(first.validation), first.learned.drawn] == [4, 4, 0]
    assert all(one.learned.drawn == 12 and one.learned.answers == 36 and one.learned.pairs > 0 for one in learned)
    assert all(one.retention != 1 for one in learned)
    out, rounds = tmp_path / "run", tmp_path / "run" / "rounds"
    assert (out / ADAPTER_FILE).read_bytes() == (rounds / "1" / ADAPTER_FILE).read_bytes()
    assert read_record(rounds / "2").config.to_dict()["start_from"] == str(rounds / "1")
    retained = [row["text"] for row in rows_of(rounds / "retention.jsonl")]
    asked = rows_of(rounds / "1.answers.jsonl")
    pairs = rows_of(rounds / "1.pairs.jsonl")
    assert (len(retained), len(asked), len(pairs)) == (16, 12, learned[0].learned.pairs)
    parts = split_prompts(config(tmp_path))
    assert retained == [row.text for row in (*parts["validation"], *parts["training"])]
    assert not {*retained} & {row.text for row in parts["held_out"]}, "held-out prompts choose nothing"
    said = capsys.readouterr().err
    assert ("before round 1: mean reward" in said, "learned 0 pairs" in said) == (True, False)
    by_prompt = {row["prompt"]: {one["text"]: one["reward"] for one in row["answers"]} for row in asked}
    for row in pairs:
        rewards = by_prompt[row["prompt"]]
        assert [rewards[row["chosen"]], rewards[row["rejected"]]] == row["scores"]
        assert row["scores"][0] > row["scores"][1] == min(rewards.values())
    page = report_page(read_record(out), out)
    assert all(said in page for said in ("Reward by round", "1\nkept", "held-out prompts (4) is"))


def test_line_ends_of_unicode_are_learned_and_changed_answers_are_refused(tmp_path: Path):
    rows = [{"prompt": f"{number}\u2028\x85", "note": "a\u2029b"} for number in range(4)]
    data = write_rows(tmp_path / "odd.jsonl", rows)
    given = random_config(tmp_path, "odd", data=data)
    assert train_by_reward(given).rounds[1].learned.drawn == 4
    answers = tmp_path / "odd" / "rounds" / "1.answers.jsonl"
    answers.write_text(answers.read_text("utf-8").replace('"reward": 0', '"reward": 1', 1), "utf-8")
    more = random_config(tmp_path, "odd", data=data, settings={"rounds": 3})
    with refused(r"1\.answers\.jsonl has changed"):
        train_by_reward(more, resume=True)


def kill(given: RunConfig, owner: Any, name: str, call: int = 2) -> None:
    """Start a run, and raise KeyboardInterrupt in it at a call of a function."""
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_by_reward(given)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (reward_run, "write_answers", 2),
        (TrainingLoop, "train_step", 2),
        (reward_run.Rounds, "judge", 2),
        (reward_run, "multiply_update", 3),
    ],
)
def test_a_run_that_is_killed_ends_with_the_same_bytes(owner: Any, name: str, call: int, whole: Path):
    """Also with a rule that scores at random, and while parts of an update are judged."""
    again = random_config(whole, name)
    kill(again, owner, name, call)
    train_by_reward(again, resume=True)
    for file in (ADAPTER_FILE, "rounds/1.answers.jsonl", "rounds/2.pairs.jsonl", f"rounds/1/{ADAPTER_FILE}"):
        assert (whole / name / file).read_bytes() == (whole / "whole" / file).read_bytes(), file
    assert read_record(whole / name).weakened == read_record(whole / "whole").weakened != []


def test_a_finished_run_goes_on_with_more_rounds(whole: Path):
    once = random_config(whole, "longer", settings={"rounds": 1})
    train_by_reward(once)
    with refused("after round 1;"):
        train_by_reward(once, resume=True)
    longer = train_by_reward(random_config(whole, "longer"), resume=True)
    assert [one.learned for one in longer.rounds] == [one.learned for one in read_record(whole / "whole").rounds]
    assert (whole / "longer" / ADAPTER_FILE).read_bytes() == (whole / "whole" / ADAPTER_FILE).read_bytes()


def test_a_run_that_has_ended_because_nothing_was_gained_goes_on_if_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reward_run, "still_gains", lambda rounds: len(rounds) < 2)
    assert len(train_by_reward(config(tmp_path, **ALL_LEARNED)).rounds) == 2
    longer = train_by_reward(config(tmp_path, settings={"rounds": 3}, **ALL_LEARNED), resume=True)
    assert len(longer.rounds) == 4
    assert {one.round for one in longer.weakened} == {3}


def judged(number: int, reward: float, **figures: Any) -> RewardRound:
    """What a model with this reward on eight validation prompts is worth."""
    given: dict[str, Any] = {"distinct": 0.9, "spoiled": [0.0] * 8, "retention": 1.0} | figures
    return RewardRound(round=number, held_out=[], validation=[reward] * 8, length=1, samples=[], **given)


@pytest.mark.parametrize(
    ("figures", "left_out"),
    [
        ({"retention": 1.05}, None),
        ({"retention": 1.11}, "retention"),
        ({"distinct": 0.68}, None),
        ({"distinct": 0.67}, "variety"),
        ({"spoiled": [0.0] * 6 + [1 / 3, 2 / 3]}, None),
        ({"spoiled": [1 / 3] * 7 + [0.0]}, "loops"),
    ],
)
def test_what_is_spoiled_is_never_kept(figures: dict[str, Any], left_out: str | None):
    start, safe, best = judged(0, 0.1), judged(1, 0.3, strength=0.5), judged(1, 0.9, **figures)
    kept = choose_round([start, safe, best], 0.1)
    assert best.left_out == left_out
    assert kept is (safe if left_out else best)
    assert choose_round([start, best], 0.1) is (start if left_out else best)


@pytest.mark.parametrize(
    ("rewards", "goes_on"),
    [
        ([0.1, 0.2, 0.2], True),
        ([0.1, 0.2, 0.2, 0.2], False),
        ([0.1, 0.4, 0.4, 0.7], True),
        ([0.1, 0.4, 0.7, 0.7, 0.7], False),
    ],
)
def test_rounds_go_on_while_two_of_them_gain(rewards: list[float], goes_on: bool):
    assert still_gains([judged(number, reward) for number, reward in enumerate(rewards)]) == goes_on
    assert still_gains([judged(0, 0).model_copy(update={"validation": []}) for _round in rewards])


def test_answers_that_repeat_themselves_are_told_from_short_ones():
    repeated, empty = "「川」。「川」。「川」。「川」。", [" \n", ""]
    assert all(map(sampling.is_spoiled, [repeated, *empty]))
    assert not any(map(sampling.is_spoiled, ["川", "はい。", "一軒の家を出て、川のほとりを歩いた。", "42"]))
    assert sampling.variety("abcabc") == pytest.approx(3 / 4)


def test_of_equal_rewards_the_first_one_is_kept():
    rounds = [judged(0, 0.1), judged(1, 0.9), judged(2, 0.9)]
    assert choose_round(rounds, 0.1) is rounds[1]
    unmeasured = [one.model_copy(update={"validation": []}) for one in (*rounds, judged(2, 0.0, strength=0.5))]
    assert choose_round(unmeasured, 0.1) is unmeasured[2]
    unmeasured[2].retention = 2
    assert choose_round(unmeasured, 0.1) is unmeasured[3]


def test_a_part_of_an_update_is_judged_by_answers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The result, which was measured, is what `tsugiki adapters combine` makes of the round."""
    monkeypatch.setattr(reward_run, "choose_round", lambda judged, most: judged[-1])
    record = train_by_reward(config(tmp_path, settings={"rounds": 1}))
    strengths = [one.strength for one in record.weakened]
    assert (record.kept_round, record.strength, strengths) == (1, strengths[-1], sorted(strengths))
    assert len({one.retention for one in (*record.weakened, record.rounds[1])}) == len(strengths) + 1
    out, rounds, part = tmp_path / "run", tmp_path / "run" / "rounds", tmp_path / "part"
    combine_command([str(rounds / "1")], out=str(part), weights=f"{record.strength}")
    kept, combined = read_lora_weights(out).layers, read_lora_weights(part).layers
    for name, layer in combined.items():
        ours, theirs = (one.scaling * torch.matmul(*matrices(one)) for one in (kept[name], layer))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    scores = tsugiki.evaluate(str(rounds / "retention.jsonl"), model=tiny_base(tmp_path), adapter=str(part))
    before, after = (score.loss for score in scores.values())
    assert after / before == pytest.approx(record.weakened[-1].retention, rel=1e-4)
    page = report_page(record, out)
    assert f"1 × {record.strength:g}\nkept" in page
    assert f"tsugiki adapters combine {rounds / '1'} --weights {strengths[-2]:g}" in page


def test_the_report_says_why_the_highest_reward_is_not_kept():
    def said(*rounds: RewardRound) -> str:
        given = {"rounds": [one.model_dump() for one in rounds], "kept_round": 1}
        return str([part.text for part in reward_parts(a_record(**given)) if isinstance(part, Sentence)])

    start, safe, far = judged(0, 0.1), judged(1, 0.3), judged(2, 0.9, retention=1.2)
    assert "Nothing that was judged has a higher reward" in said(start, safe)
    assert said(start, safe, far) == "[]", "a record of an earlier version does not say it"
    choose_round([start, safe, far], 0.1)
    assert "Round 2 has a higher reward (0.900 on" in said(start, safe, far)
    unmeasured = [one.model_copy(update={"validation": []}) for one in (start, safe, far)]
    assert said(*unmeasured[:2]) == "[]"
    assert "Round 2 is the last" in said(*unmeasured)


def test_a_method_without_strength_is_judged_as_it_is(tmp_path: Path):
    record = train_by_reward(config(tmp_path, method="dora", settings={"rounds": 1}, **ALL_LEARNED))
    assert (record.weakened, record.kept_round, record.strength) == ([], 1, 1)


def test_prompts_that_teach_nothing_are_drawn_less_often(tmp_path: Path):
    """The rule is the same for all answers to the second half of the prompts."""
    text = "def reward(prompt, answer, right):\n    return len(answer.encode()) * (right < 10)\n"
    settings = {"rounds": 2, "prompts": 10, "samples": 6}
    train_by_reward(config(tmp_path, reward=[rule(tmp_path, text)], settings=settings, **ALL_LEARNED))
    files = [tmp_path / f"run/rounds/{number}.answers.jsonl" for number in (1, 2)]
    first, second = ({row["fields"]["right"] for row in rows_of(file)} for file in files)
    assert (len(first), len(second)) == (10, 10)
    assert len(first & {*range(10)}) < len(second & {*range(10)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ["regex:no such text"]}, "score alike.*1.answers.jsonl"),
        ({"reward": ["field:absent"]}, "no rule applies to any of the 36 answers"),
        ({"validation": 0.6, "held_out": 0.6}, "no prompts are left"),
    ],
)
def test_what_teaches_nothing_ends_a_run_before_its_first_step(changes: dict[str, Any], message: str, tmp_path: Path):
    with refused(message):
        train_by_reward(config(tmp_path, **changes))
    assert not list(tmp_path.glob(f"run/**/{ADAPTER_FILE}"))


def test_one_prompt_suffices_and_a_rule_that_no_answer_reaches_is_named(tmp_path: Path, capsys: Any):
    rules = [rule(tmp_path), "regex:no such text"]
    record = train_by_reward(config(tmp_path, data=prompts(tmp_path, 1), reward=rules, settings={"rounds": 1}))
    assert record.rounds[1].learned.pairs == 1
    assert record.kept_round == 1
    assert "regex:no such text gives 0.0 to all answers" in capsys.readouterr().err


def test_no_adapter_is_left_where_no_round_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reward_run, "choose_round", lambda judged, most: judged[0])
    with refused(r"no round.*900% more.*rounds"):
        train_by_reward(config(tmp_path, settings={"rounds": 1}))
    assert not (tmp_path / "run" / ADAPTER_FILE).exists()
    record = read_record(tmp_path / "run")
    assert record.kept_round == 0
    assert report_page(record, tmp_path / "run")


def test_a_changed_rule_is_named(tmp_path: Path):
    kill(config(tmp_path), reward_run, "write_answers")
    changed = config(tmp_path, reward=[rule(tmp_path, RANDOM)])
    with refused(r"rules have changed.*rule\.py"):
        train_by_reward(changed, resume=True)


def test_programs_run_only_if_the_command_names_them(whole: Path, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "embedded", "data": "p", "out": "o", "reward": [rule(tmp_path)]}))
    with refused(r"run\.yaml.*rule\.py"):
        load_config(path, {})
    assert load_config(path, {"reward": ["regex:a"]}).reward == ("regex:a",)
    with refused("only the command"):
        resumed_settings(whole / "whole", {}, None)
    assert resumed_settings(whole / "whole", {"reward": [str(path)]}, None).reward == (str(path),)


@pytest.mark.parametrize(
    "changes",
    [{"minutes": 1, "max_steps": None}, {"preference": "kto"}, {"method": "full", "lora": {}}, {"mix": "a:0.1"}],
)
def test_settings_that_do_not_belong_to_a_reward_are_errors(changes: dict[str, Any], tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be combined"):
        config(tmp_path, **changes)
    with refused("tsugiki train"):
        train(config(tmp_path))


def test_pairs_are_written_once_as_a_round_writes_them(whole: Path, tmp_path: Path):
    settings = random_config(whole, "pairs").model_dump(exclude_unset=True, exclude={"out"})
    counted = tsugiki.pairs(out=str(tmp_path / "pairs.jsonl"), **settings)
    assert counted.drawn == 20
    assert (tmp_path / "pairs.jsonl").read_bytes() == (whole / "whole/rounds/1.pairs.jsonl").read_bytes()
    other = {"reward": (), "reward_settings": None, "data": str(tmp_path / "pairs.jsonl")}
    tsugiki.train(**{**settings, **other}, out=str(tmp_path / "learned"))
    with refused("exists"):
        tsugiki.pairs(out=str(tmp_path / "pairs.jsonl"), **settings)
