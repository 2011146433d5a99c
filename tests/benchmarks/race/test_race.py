"""The race: what counts as reaching the loss, and a whole race on a tiny model."""

import math
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.race.__main__ import main
from benchmarks.race.race import PeftSettings, RaceResult, ToolRun, best_settings, run_race

from tests.errors import assert_refused, refused
from tests.files import write_rows
from tests.tiny import save_tiny


def run_of(tool: str, seed: int, *curve: tuple[float, float]) -> ToolRun:
    return ToolRun(tool, seed, seconds=curve[-1][0] + 1, peak=2_000_000_000, curve=list(curve))


PEFT = [run_of("peft-best", seed, (5.0, 3.5), (10.0, 3.0)) for seed in (1, 2)]
TSUGIKI = [
    run_of("tsugiki", 1, (4.0, 3.2), (5.0, 3.0), (6.0, 3.1)),
    run_of("tsugiki", 2, (4.0, 3.2), (8.0, 2.9)),
]


def last_row(*runs: ToolRun) -> list[str]:
    """The last row of the table of a race to the loss 3.0, in which PEFT needs 10 seconds with both seeds."""
    return RaceResult({1: 3.0, 2: 3.0}, [*PEFT, *runs], PeftSettings()).rows()[-1]


def test_the_first_adapter_with_the_loss_or_a_lower_one_counts():
    _tool, seconds, _ratio, losses, _peak = last_row(*TSUGIKI)
    assert (seconds, losses) == ("5.0, 8.0", "3.0000, 2.9000")


def test_the_ratio_to_peft_is_the_median_over_the_seeds():
    assert last_row() == ["peft-best", "10.0, 10.0", "1.00", "3.0000, 3.0000", "2.00 GB"]
    assert last_row(*TSUGIKI)[2] == "1.62"


def test_a_tool_that_does_not_reach_the_loss_has_no_ratio():
    never = [run_of("trl", seed, (40.0, 3.01)) for seed in (1, 2)]
    assert last_row(*never) == ["trl", "not in 41, not in 41", "–", "3.0100, 3.0100", "2.00 GB"]


def test_a_process_that_fails_is_shown_with_its_problem():
    failed = ToolRun("peft-documented", 1, seconds=3.0, problem="exited with status 1: no such file")
    assert last_row(failed) == ["peft-documented", "exited with status 1: no such file", "–", "–", "–"]


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
        one_row = settings.batch_size == 1
        distance = abs(math.log(settings.learning_rate * (1 + one_row) / optimum))
        seconds = eager_seconds if settings.attention == "eager" else 10.0
        return ToolRun("peft-best", 1, seconds, curve=[(5.0, 3 + distance + with_one_row * one_row)])

    found, run_of_best = best_settings(run)
    assert (found, run_of_best.seconds) == (best, min(10.0, eager_seconds))
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
        write_rows(tmp_path / f"{name}.jsonl", rows)
    files = [[str(tmp_path / f"{name}.jsonl")] for name in ("train", "held_out")]
    lines: list[str] = []
    result = run_race(model, *files, seeds=1, show=lines.append)
    found = {run.tool: run for run in result.runs}
    has_trl = find_spec("trl") and shutil.which("trl")
    assert set(found) == {"peft-best", "peft-documented", "tsugiki", *(["trl"] if has_trl else [])}
    assert not [run.problem for run in result.runs if run.problem]
    of_best = [line for line in lines if line.startswith("peft-best")]
    assert len(of_best) >= 5  # three rates or more, one row in a step, and the other attention implementation
    assert len(lines) - len(of_best) == len(found) - 1
    assert all(len(run.curve) >= 3 and run.peak for run in found.values())
    assert all(0 < seconds < run.seconds for run in found.values() for seconds, _loss in run.curve)
    best = found["peft-best"].curve
    assert best[-1][1] < best[0][1]
    assert found["peft-best"].reached(result.goals[1]) is not None


def test_what_is_no_race_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "one", "completion": "two"}\n', encoding="utf-8")
    model = save_tiny(tmp_path / "model")
    with refused("--held-out"):  # two kinds of records
        run_race(model, [str(tmp_path / "a.jsonl")], [str(tmp_path / "b.jsonl")], 1, print)
    with refused("nobody.*peft-documented, trl, tsugiki"):
        run_race("embedded", [], [], 1, print, ["tsugiki", "nobody"])
    for arguments, fact in ((["--model", "gpt2-small"], "random"), (["--data", "a"], "--held-out")):
        assert_refused(fact, main, arguments)
