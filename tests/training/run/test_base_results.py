"""What a base computes before it is trained is kept for the next run, and computed when it is needed."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.runs import interrupt, run_config
from tsugiki.io import cache
from tsugiki.training import RunConfig, RunRecord, train
from tsugiki.training.run import evaluation_callback, prepare, scores

SETTINGS: dict[str, Any] = {"validation": "auto", "max_steps": 1, "eval_steps": 1, "held_out": 0.5}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that compute with the model of a run, once for each call."""
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: calls.append(name) or function(*given))

    for module, name in ((scores, "evaluate"), (prepare, "predict_sample"), (evaluation_callback, "samples")):
        count(module, name)
    return calls


def config(folder: Path, out: str, **changes: Any) -> RunConfig:
    return run_config(folder, out, **{**SETTINGS, **changes})


def of_base(record: RunRecord) -> list[Any]:
    return [record.evaluations[0], record.validations[0], record.samples[0], record.resolved_settings]


def test_the_second_run_computes_nothing_of_the_base(tmp_path: Path, computed: list[str]):
    first = train(config(tmp_path, "first"))
    by_first = Counter(computed)
    computed.clear()
    second = train(config(tmp_path, "second"))
    # Of the base: predictions, the held-out and the validation text, a sample. The adapter's own figures are computed.
    assert by_first - Counter(computed) == {"evaluate": 2, "predict_sample": 1, "samples": 1}
    assert computed.count("evaluate") >= 2
    assert of_base(second) == of_base(first)
    assert second.evaluations[-1] != second.evaluations[0]


def test_nothing_is_taken_from_another_base_or_text(tmp_path: Path, computed: list[str]):
    def computed_in(name: str, **settings: Any) -> list[str]:
        computed.clear()
        train(config(tmp_path, name, **settings))
        return sorted(computed)

    everything = computed_in("first")
    assert computed_in("dtype", base_dtype="int8") == everything
    assert computed_in("prompt", prompts=["雨が"]).count("samples") == 2
    for path in (tmp_path / "texts").iterdir():
        path.write_text(path.read_text().replace("の", "が"))
    assert computed_in("text") == everything
    path = tmp_path / "base-gpt2" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path, {"format": "pt"})
    assert computed_in("weights") == everything
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tsugiki.training.run.load.code_state", lambda: 1)
        assert computed_in("version of the program") == everything


def test_the_base_is_not_scored_before_the_first_step(tmp_path: Path, computed: list[str]):
    interrupt(train, config(tmp_path, "run"), 0)
    assert computed == ["predict_sample", "samples"]


def test_the_state_of_the_program_is_the_time_of_its_last_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, seconds in (("a.py", 5), ("inner/native.so", 7), ("inner/page.js", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (seconds, seconds))
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "io" / "cache.py"))
    cache.code_state.cache_clear()
    assert cache.code_state() == 7_000_000_000
    cache.code_state.cache_clear()
