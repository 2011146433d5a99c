"""The embedded base is built, continued and averaged as its folder says, with a tiny model."""

import json
from pathlib import Path
from typing import Any

import average
import pretrain
import pytest
import yaml
from safetensors.torch import load_file

from tests.tiny import TEXT, logits
from tsugiki.base import load_model, load_tokenizer
from tsugiki.cli.main import main as tsugiki
from tsugiki.io import MODEL_FILE

FOLDER = Path(__file__).parents[2] / "examples" / "embedded_base"
SMALL = {"block_size": 32, "batch_size": 2, "max_steps": 3}
MARK = "龕" * 40


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with texts of two authors, of which the recipe holds one out."""
    monkeypatch.chdir(tmp_path)
    rows = [(TEXT[: len(TEXT) // 2], "000148"), (TEXT[len(TEXT) // 2 :], "000148"), (MARK + TEXT[200:500], "000040")]
    lines = (json.dumps({"text": text, "person_id": person}, ensure_ascii=False) for text, person in rows)
    text = "\n".join(lines)
    for name in ("modern", "learnable", "continue"):
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
    return tmp_path


def recipe(name: str, **changes: Any) -> Path:
    """Write a recipe of the folder with a tiny model, and return its place."""
    settings = yaml.safe_load((FOLDER / name).read_text("utf-8")) | SMALL | changes
    if "tokenizer" in settings:
        settings["model"] |= {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32}
        settings["tokenizer"] |= {"vocab_size": 760, "common_characters": 60}
    Path(name).write_text(yaml.safe_dump(settings, allow_unicode=True), "utf-8")
    return Path(name)


def test_it_is_built_continued_and_averaged(place: Path, capsys: pytest.CaptureFixture[str]):
    pretrain.main(recipe("pretrain.yaml"))
    assert "step 3 of 3: loss" in capsys.readouterr().out
    start, made, tokenizer = load_model("base/start"), load_model("base"), load_tokenizer("base")
    assert made.config.vocab_size == len(tokenizer) == 760
    assert made.config.eos_token_id == made.config.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.model_max_length == 32
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert not set(MARK) & set(tokenizer.get_vocab()), "the tokenizer sees nothing that is held out"
    assert (logits(start) - logits(made)).abs().max() > 1e-3
    pretrain.main(recipe("continue.yaml"))
    average.main(Path("base"), Path("continued"), 0.5, Path("embedded"))
    one, other, mean = (load_file(Path(name, MODEL_FILE)) for name in ("base", "continued", "embedded"))
    for name, weight in mean.items():
        assert weight.float().allclose((one[name].float() + other[name].float()) / 2, atol=1e-3)
    assert any((one[name] != other[name]).any() for name in one)


def test_the_same_seed_gives_the_same_bytes(place: Path):
    pretrain.main(recipe("pretrain.yaml", out="one"))
    pretrain.main(recipe("pretrain.yaml", out="two"))
    assert Path("one", MODEL_FILE).read_bytes() == Path("two", MODEL_FILE).read_bytes()


def test_the_commands_do_not_take_its_files(place: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("sys.argv", ["tsugiki", "train", str(FOLDER / "continue.yaml")])
    with pytest.raises(SystemExit) as end:
        tsugiki()
    assert end.value.code == 2
    assert "examples/embedded_base" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="AdamW"):
        pretrain.main(recipe("continue.yaml", optimizer="adamw"))
