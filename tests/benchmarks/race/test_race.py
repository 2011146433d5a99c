"""The race: what counts as reaching the loss, and a whole race on a tiny model."""

import json
import math
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks.race.__main__ import main
from benchmarks.race.race import PeftSettings, RaceResult, ToolRun, best_settings, copy_new_adapters, run_race

from benchmarks.race import race
from tests.tiny import save_grafted, save_tiny, tiny_model
from tsugiki import LoraConfig, TsugikiError


def run_of(tool: str, seed: int, *curve: tuple[float, float]) -> ToolRun:
    return ToolRun(tool, seed, seconds=curve[-1][0] + 1, peak=2_000_000_000, curve=list(curve))


def test_the_first_adapter_of_the_loss_or_a_lower_one_counts():
    slow, quick = (10.0, 3.0), (4.0, 3.2)
    best = [run_of("peft-best", seed, (5.0, 3.5), slow) for seed in (1, 2)]
    ours = [run_of("tsugiki", 1, quick, (5.0, 3.0), (6.0, 3.1)), run_of("tsugiki", 2, quick, (8.0, 2.9))]
    never = [run_of("trl", seed, (40.0, 3.01)) for seed in (1, 2)]
    result = RaceResult({1: 3.0, 2: 3.0}, [*best, *ours, *never], PeftSettings())
    assert result.rows() == [
        ["peft-best", "10.0, 10.0", "1.00", "3.0000, 3.0000", "2.00 GB"],
        ["tsugiki", "5.0, 8.0", "1.62", "3.0000, 2.9000", "2.00 GB"],
        ["trl", "not in 41, not in 41", "–", "3.0100, 3.0100", "2.00 GB"],
    ]


def test_a_tool_that_failed_has_no_figures():
    failed = ToolRun("trl", 1, seconds=3.0, problem="exited with status 1: no such file")
    result = RaceResult({1: 3.0}, [run_of("peft-best", 1, (10.0, 3.0)), failed], PeftSettings())
    assert result.rows()[1] == ["trl", "exited with status 1: no such file", "–", "–", "–"]


@pytest.mark.parametrize(
    ("optimum", "rates", "with_one_row", "eager_seconds", "best"),
    [
        (5e-3, [1e-3, 3e-3, 9e-3], 0.1, 9.0, PeftSettings(3e-3, 4, "eager")),
        (2e-4, [1e-3, 3e-3, 3.3e-4, 1.1e-4], -0.1, 11.0, PeftSettings(1.65e-4, 1, "sdpa")),
    ],
)
def test_the_best_settings_of_peft_are_searched_for(
    optimum: float, rates: list[float], with_one_row: float, eager_seconds: float, best: PeftSettings
):
    tried: list[PeftSettings] = []

    def run(settings: PeftSettings) -> ToolRun:
        tried.append(settings)
        rate, change = settings.learning_rate, 0.0
        if settings.batch_size == 1:
            rate, change = 2 * rate, with_one_row
        loss = 3 + abs(math.log(rate / optimum)) + change
        return ToolRun("peft-best", 1, eager_seconds if settings.attention == "eager" else 10.0, curve=[(5.0, loss)])

    found, run_of_best = best_settings(run)
    assert found == best
    assert run_of_best.seconds == min(10.0, eager_seconds)
    assert [one.learning_rate for one in tried if one.batch_size == 4 and one.attention == "sdpa"] == rates
    assert len(tried) == len({*tried}) == len(rates) + 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "question"])
def test_every_tool_reaches_a_loss(kind: str, tmp_path: Path):
    model = save_tiny(tmp_path / "model", "llama", max_position_embeddings=1024)
    chance = random.Random(0)

    vocabulary = ["".join(chance.choices("aeioumnrst", k=4)) for _number in range(500)]

    def words(count: int) -> str:
        return " ".join(chance.choices(vocabulary, k=count))

    for name, count in (("train", 60), ("held_out", 6)):
        rows = [
            {"text": words(120)} if kind == "text" else {"prompt": words(9), "completion": words(30)}
            for _number in range(count)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = [[str(tmp_path / f"{name}.jsonl")] for name in ("train", "held_out")]
    lines: list[str] = []
    result = run_race(model, *files, seeds=1, show=lines.append)
    found = {run.tool: run for run in result.runs}
    tools = {"peft-best", "peft-documented", "tsugiki"} | (
        {"trl"} if find_spec("trl") and shutil.which("trl") else set()
    )
    assert set(found) == tools
    assert not [run.problem for run in result.runs if run.problem]
    of_best = [line for line in lines if line.startswith("peft-best")]
    assert len(of_best) >= 5  # three rates or more, one row in a step, and the other attention implementation
    assert len(lines) - len(of_best) == len(tools) - 1
    assert all(len(run.curve) >= 3 and run.peak for run in found.values())
    assert all(0 < seconds < run.seconds for run in found.values() for seconds, _loss in run.curve)
    best = found["peft-best"].curve
    assert best[-1][1] < best[0][1]
    assert found["peft-best"].reached(result.goals[1]) is not None


def test_two_kinds_of_records_are_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "one", "completion": "two"}\n', encoding="utf-8")
    model = save_tiny(tmp_path / "model")
    with pytest.raises(TsugikiError, match="--held-out"):
        run_race(model, [str(tmp_path / "a.jsonl")], [str(tmp_path / "b.jsonl")], 1, print)


def test_adapters_that_are_being_written_or_removed_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out, folder = tmp_path / "out", tmp_path / "copies"
    folder.mkdir()
    for name in ("checkpoint-1", "checkpoint-2", ".checkpoint-3.part/.files.part", "checkpoint-4"):
        save_grafted(out / name, tiny_model("llama"), LoraConfig(r=2))
    copy, opened = shutil.copy2, race.safe_open

    def removed_before(file: Path, framework: str) -> Any:
        if file.parent.name == "checkpoint-4":
            shutil.rmtree(file.parent)
        return opened(file, framework)

    def copy_and_remove(source: Path, target: Path) -> None:
        copy(source, target)
        if source.parent.name == "checkpoint-1":
            shutil.rmtree(source.parent)

    monkeypatch.setattr(shutil, "copy2", copy_and_remove)
    monkeypatch.setattr(race, "safe_open", removed_before)
    copies: dict[tuple[Path, int], Path] = {}
    copy_new_adapters(out, folder, copies)
    assert [file.parent.name for file, _at in copies] == ["checkpoint-2"]
    (copied,) = copies.values()
    assert {path.name for path in copied.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_unknown_tool_is_refused(tmp_path: Path):
    with pytest.raises(TsugikiError, match="nobody.*peft-documented, trl, tsugiki"):
        run_race("embedded", [], [], 1, print, ["tsugiki", "nobody"])


@pytest.mark.parametrize(
    ("arguments", "fact"), [(["--model", "gpt2-small"], "random"), (["--data", "a"], "--held-out")]
)
def test_a_race_without_a_trained_base_or_held_out_text_is_refused(arguments: list[str], fact: str):
    with pytest.raises(TsugikiError, match=fact):
        main(arguments)
