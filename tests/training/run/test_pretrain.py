"""Training from nothing: what it leaves, resumed, what the tokenizer may see, and bad input."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.runs import assert_resumes, interrupt
from tests.tiny import TEXT, logits
from tsugiki import TsugikiError
from tsugiki.base import load_model, load_tokenizer
from tsugiki.io import CHECKPOINTS, MODEL_FILE
from tsugiki.training import START, PretrainConfig, build_model, load_settings, pretrain

MODEL = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}


def story(seed: int, sentences: int = 60) -> str:
    """Sentences that no other seed has."""
    draw = random.Random(seed)
    words = ["庭師", "漁師", "枝", "船", "雨", "風", "朝", "夕", "山道", "川岸", "花", "石段", "古い橋", "白い鳥"]
    ends = ["を見た", "に会った", "を歩いた", "と言った", "を待っていた", "を忘れた"]
    lines = ("は".join(draw.sample(words, 2)) + draw.choice(ends) + "。" for _ in range(sentences))
    return "".join(line + draw.choice(["", "\n"]) for line in lines)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path) -> None:
    rows = [{"text": story(i), "author": name} for i, name in enumerate("甲乙丙丁")]
    rows[3]["text"] = "鷗" * 40 + "。\n" + rows[3]["text"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def settings(tmp_path: Path, out: str = "run", **changes: Any) -> PretrainConfig:
    fields: dict[str, Any] = {
        "data": str(tmp_path / "texts.jsonl"),
        "held_out": "author=丁",
        "out": str(tmp_path / out),
        "model": MODEL,
        "tokenizer": {"vocab_size": 420, "common_characters": 60},
        "max_steps": 5,
        "batch_size": 2,
        "block_size": 32,
        "save_steps": 2,
        "prompts": ["庭師"],
        "sample_tokens": 4,
    }
    return PretrainConfig.model_validate(fields | changes)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_run_leaves_an_ordinary_model_folder(kind: str, tmp_path: Path):
    llama = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MODEL if kind == "gpt2" else {"model_type": kind, "max_position_embeddings": 32, **llama}
    record = pretrain(settings(tmp_path, model=model))
    made, tokenizer = load_model(str(tmp_path / "run")), load_tokenizer(str(tmp_path / "run"))
    assert made.config.model_type == kind
    assert made.config.vocab_size == len(tokenizer) == 420
    assert made.config.eos_token_id == made.config.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.model_max_length == 32
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float16}
    start = load_model(str(tmp_path / "run" / CHECKPOINTS / START))
    assert not torch.allclose(logits(start), logits(made), atol=1e-3)
    assert record.config.method == "pretrain"
    assert record.config.model == model
    assert record.parameters.share == 1
    assert record.data.held_out.documents == 1
    assert record.evaluations[-1].bits_per_char < record.evaluations[0].bits_per_char
    assert all(entry.tokenizer_is_lossless and not entry.unknown_tokens for entry in record.evaluations)
    with pytest.raises(TsugikiError, match="run.*--out"):
        pretrain(settings(tmp_path))


@pytest.mark.parametrize("cut", [0, 3])
def test_a_resumed_run_gives_the_same_bytes(cut: int, tmp_path: Path):
    files = [MODEL_FILE, "tokenizer.json", "config.json"]
    assert_resumes(pretrain, settings(tmp_path, optimizer="muon"), cut, files)


def test_a_run_of_other_settings_is_not_resumed(tmp_path: Path):
    config = settings(tmp_path)
    interrupt(pretrain, config, 0)
    with pytest.raises(TsugikiError, match=r"model.n_layer \(was 1, now 2\)$"):
        pretrain(config.model_copy(update={"model": {**MODEL, "n_layer": 2}}), resume=True)


def vocabulary(tmp_path: Path, out: str, **changes: Any) -> set[str]:
    pretrain(settings(tmp_path, out, max_steps=1, prompts=[], **changes))
    return set(load_tokenizer(str(tmp_path / out)).get_vocab())


def test_the_tokenizer_sees_nothing_that_is_held_out(tmp_path: Path):
    assert "鷗" not in vocabulary(tmp_path, "condition")
    assert "鷗" in vocabulary(tmp_path, "other", held_out="author=甲")


def test_more_text_for_the_tokenizer_is_kept_from_what_is_held_out(tmp_path: Path):
    def more(*rows: tuple[str, str]) -> dict[str, Any]:
        lines = (json.dumps({"text": text, "author": author}, ensure_ascii=False) for text, author in rows)
        (tmp_path / "more.jsonl").write_text("\n".join(lines))
        return {"vocab_size": 420, "common_characters": 60, "data": str(tmp_path / "more.jsonl")}

    mark = "鷗" * 40 + "。\n"
    found = vocabulary(tmp_path, "a", tokenizer=more((mark + story(7), "\u3000丁\u200b"), ("龜" * 40 + story(8), "戊")))
    assert "龜" in found
    assert "鷗" not in found  # by the author that is held out
    near = (mark + story(3) + "終", "戊")  # nearly the same as the text that is held out
    assert "鷗" not in vocabulary(tmp_path, "b", tokenizer=more(near))
    lines = (tmp_path / "texts.jsonl").read_text().splitlines()
    (tmp_path / "rest.jsonl").write_text("\n".join(lines[:3]))
    (tmp_path / "held.jsonl").write_text(lines[3])
    files = {"data": str(tmp_path / "rest.jsonl"), "held_out": str(tmp_path / "held.jsonl")}
    assert "鷗" not in vocabulary(tmp_path, "c", tokenizer=more(near), **files)
    assert "鷗" in vocabulary(tmp_path, "d", tokenizer=more((mark + story(9), "戊")), **files)


def test_one_document_is_cut_before_the_tokenizer_sees_it(tmp_path: Path):
    (tmp_path / "one.txt").write_text(story(1) + "\n" + "鷗" * 40 + "\n")
    assert "鷗" not in vocabulary(tmp_path, "run", data=str(tmp_path / "one.txt"), held_out=0.1)


def test_a_tokenizer_that_there_is_is_taken(tmp_path: Path):
    pretrain(settings(tmp_path, "first", max_steps=1))
    pretrain(settings(tmp_path, "second", max_steps=1, tokenizer=str(tmp_path / "first"), seed=1))
    one, two = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second"))
    assert one == two


def test_one_seed_gives_one_model():
    one, two, other = (build_model(MODEL, 300, seed) for seed in (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": {"n_layer": 1}}, "model: model_type is missing"),
    ({"model": {"model_type": "gpt9"}}, "model: model_type is 'gpt9'; name a causal language model"),
    ({"model": {"model_type": "t5"}}, "model: model_type is 't5'"),
    ({"model": {**MODEL, "n_head": 3}}, "model: no gpt2 can be built.*.*divisible"),
    ({"model": {**MODEL, "layers": 3}}, "model: layers: a gpt2 has no such setting; GPT2Config lists them"),
    ({"model": {**MODEL, "n_layer": "many"}}, "model: no gpt2 can be built"),
    ({"model": {**MODEL, "vocab_size": 5}}, "vocab_size comes from the tokenizer"),
    ({"block_size": 33}, "block_size is 33, but the model's context is 32"),
    ({"tokenizer": {"vocab_size": 5000}}, "vocab_size is 5,000, but .* characters of text support only"),
    ({"tokenizer": {"vocab_size": 300}}, "raise it, or lower common_characters"),
    ({"tokenizer": "./nowhere"}, "no model at './nowhere'"),
    ({"held_out": "author=戊"}, "no record has author=戊"),
    ({"data": "nowhere"}, "no file or folder nowhere"),
    ({"lr_scheduler_type": "sideways"}, "sideways"),
    ({"prompts": ["庭師は枝を" * 40]}, "the prompt has"),
]


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match=said):
        pretrain(settings(tmp_path, **changes))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_what_a_refused_run_began_with_is_not_taken_up(tmp_path: Path):
    with pytest.raises(TsugikiError, match="sideways"):
        pretrain(settings(tmp_path, lr_scheduler_type="sideways"))
    pretrain(settings(tmp_path, model={**MODEL, "n_embd": 8}, max_steps=1))
    assert load_model(str(tmp_path / "run")).config.n_embd == 8


def test_settings_from_yaml(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    plain = settings(tmp_path).model_dump(mode="json", exclude_unset=True)
    path.write_text(yaml.safe_dump(plain, allow_unicode=True))
    assert load_settings(PretrainConfig, path, {}) == settings(tmp_path)
    assert load_settings(PretrainConfig, path, {"max_steps": 7}).max_steps == 7
    for change, said in (
        ({"method": "full"}, "method: "),
        ({"tokenizer": {"vocab": 5}}, "vocab"),
        ({"tokenizer": {"vocab_size": 100}}, "258"),
    ):
        with pytest.raises(TsugikiError) as caught:
            load_settings(PretrainConfig, path, change)
        assert said in str(caught.value)
