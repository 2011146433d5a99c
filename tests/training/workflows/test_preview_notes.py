"""What a preview says of the base, the tokenizer and the targets."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import run_config
from tests.tiny import byte_tokenizer, save_tiny
from tsugiki.base import CardFacts, read_card
from tsugiki.training import preview

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

pytestmark = pytest.mark.filterwarnings("ignore")


def notes(folder: Path, data: str | None = None, template: str | None = None, **settings: Any) -> str:
    folder.mkdir(exist_ok=True)
    base = folder / "model"
    save_tiny(base)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    if data is not None:
        path = folder / ("data.jsonl" if data.startswith("{") else "data.txt")
        path.write_text(data)
        settings["data"] = str(path)
    return " ".join(preview(run_config(folder, model=str(base), block_size=64, **settings), 1).notes)


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        ("---\nlicense: apache-2.0\n---\n# A\n", CardFacts("apache-2.0")),
        ("---\nlicense: other\nlicense_name: gemma\nextra_gated_prompt: accept\n---\n", CardFacts("gemma", gated=True)),
        ("no metadata", CardFacts()),
        ("---\nlicense: [\n---\n", CardFacts()),
    ],
)
def test_a_card_in_the_folder_is_read(card: str, facts: CardFacts, tmp_path: Path):
    (tmp_path / "README.md").write_text(card)
    assert read_card(str(tmp_path)) == facts


def test_the_licence_and_the_gate_are_named(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("---\nlicense: llama3.2\nextra_gated_prompt: accept\n---\n")
    said = notes(tmp_path)
    assert "is llama3.2" in said
    assert "is gated" in said


def test_a_chat_model_on_other_data_is_reported(tmp_path: Path):
    words = ["scion", "stock", "graft", "orchard", "pruning knife", "bark", "root", "spring", "bud", "leaf"]
    pairs = [(f"{word}?", f"{i * 7919} {word}") for i, word in enumerate(words)]
    completions = "".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs)
    turns = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in pairs]
    chat = "".join(json.dumps({"messages": messages}) + "\n" for messages in turns)
    assert "plain text" in notes(tmp_path / "a", "A plain text.\n" * 90, TEMPLATE)
    assert "joined without it" in notes(tmp_path / "b", completions, TEMPLATE)
    assert "chat template" not in notes(tmp_path / "c", chat, TEMPLATE)
    assert "chat template" not in notes(tmp_path / "d", "A plain text.\n" * 90)


def test_a_tokenizer_that_writes_characters_in_pieces_is_reported(tmp_path: Path):
    assert "parts of characters" in notes(tmp_path / "a")  # Japanese
    assert "parts of characters" not in notes(tmp_path / "b", "A plain text.\n" * 90)


def test_targets_that_leave_out_most_of_the_model_are_reported(tmp_path: Path):
    assert "of the weights between" in notes(tmp_path / "a", lora={"target_modules": ["c_attn"]})
    assert "of the weights between" not in notes(tmp_path / "b", lora={"target_modules": "all-linear"})
