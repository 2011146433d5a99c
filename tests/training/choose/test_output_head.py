"""The default layers of a run: all linear layers of the blocks, and the head where the base cannot write the text."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.runs import assert_resumes, run_config, tiny_base
from tests.tiny import byte_tokenizer
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig
from tsugiki.io import ADAPTER_FILE
from tsugiki.training import RunRecord, train
from tsugiki.training.choose.output_head import BasePredictions, head_factor, with_output_head

RARE = "Q"
BLOCKS = {"c_attn", "c_fc", "c_proj"}


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A tiny GPT-2 that has never written the letter Q: it gives it a probability of e^-32."""
    folder = tiny_base(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[byte_tokenizer()(RARE, add_special_tokens=False).input_ids[0]] = -1.0
    model.save_pretrained(folder)
    return folder


def run_on(folder: Path, share: float, **changes: Any) -> RunRecord:
    """Train for a step on texts of which about `share` of the letters are rare."""
    (folder / "rare").mkdir(exist_ok=True)
    for number in range(4):
        draw = Random(number)
        text = "".join(RARE if draw.random() < share else draw.choice("abcdefghijklmnop") for _ in range(400))
        (folder / "rare" / f"{number}.txt").write_text(text)
    return train(run_config(folder, data=str(folder / "rare"), max_steps=1, **changes))


def layers(record: RunRecord) -> set[str]:
    return set(record.resolved_settings["target_modules"])


@pytest.mark.parametrize(("share", "factor"), [(0.1, None), (0.001, 0.1)])
def test_the_head_trains_where_the_base_has_never_written_the_text(
    share: float, factor: float | None, base: str, tmp_path: Path, capsys: Any
):
    """And slowly in any case where the vocabulary is small."""
    record = run_on(tmp_path, share)
    assert layers(record) == BLOCKS | {"lm_head"}
    assert record.resolved_settings.get("head_factor") == factor
    notes = capsys.readouterr().err
    assert "output head gets LoRA factors" in notes
    assert "--merged of tsugiki export" in notes
    assert ("almost no probability" in notes) == (share == 0.1)


@pytest.mark.parametrize(
    ("share", "name", "value"),
    [
        pytest.param(0.001, "_SMALL_VOCABULARY", 100, id="the base can write the text with its large vocabulary"),
        pytest.param(0.1, "is_graftable", lambda layer: False, id="the head cannot get factors"),
    ],
)
def test_a_head_that_need_not_or_cannot_train_is_frozen(
    share: float, name: str, value: Any, base: str, tmp_path: Path, capsys: Any
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"tsugiki.training.choose.output_head.{name}", value)
        assert layers(run_on(tmp_path, share)) == BLOCKS
    assert "output head" not in capsys.readouterr().err


def test_with_few_such_tokens_the_head_learns_slowly(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    predicted = BasePredictions(0.01, torch.zeros(1))
    monkeypatch.setattr("tsugiki.training.run.prepare.predict_sample", lambda model, blocks: predicted)
    record = run_on(tmp_path, 0.01, lora={"lora_dropout": 0.0}, weight_decay=0.0, keep="last")
    assert layers(record) == BLOCKS | {"lm_head"}
    assert record.resolved_settings["head_factor"] == 0.1
    tensors = load_file(tmp_path / "run" / ADAPTER_FILE)
    largest = {name: float(tensor.abs().max()) for name, tensor in tensors.items() if name.endswith("lora_B.weight")}
    head = next(name for name in largest if "lm_head" in name)
    others = [value for name, value in largest.items() if name != head]
    assert largest[head] == pytest.approx(0.1 * max(others), rel=0.02), "one step of AdamW moves B by its rate"
    config = run_config(tmp_path, out="resumed", data=str(tmp_path / "rare"))
    assert "lm_head" in layers(assert_resumes(train, config, 3))


@pytest.mark.parametrize(
    ("share", "vocabulary", "factor"),
    [(0.004, 8192, 0.1), (0.01, 8192, 0.1), (0.03, 8192, 1.0), (0.03, 262_144, 0.1), (0.004, 32_000, None)],
)
def test_the_rate_of_the_head_follows_from_vocabulary_and_share(share: float, vocabulary: int, factor: float | None):
    assert head_factor(share, vocabulary) == factor


def test_layers_that_are_named_are_taken(base: str, tmp_path: Path):
    assert layers(run_on(tmp_path, 0.1, lora={"target_modules": "all-linear"})) == BLOCKS


def test_a_head_that_no_names_select_alone_stays_frozen():
    assert with_output_head(tiny_of("git"), LoraConfig()) is None  # called `output`, as are parts of its blocks
