"""What is sent of an adapter: nothing of this machine's paths, nothing of the data."""

import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.errors import assert_refused
from tests.files import edit_json, json_of
from tests.report.pages import record
from tests.tiny import logits, save_grafted, tiny_model
from tsugiki import LoraConfig, load_adapter
from tsugiki.hub import Publication, published_base
from tsugiki.hub.publication import publication
from tsugiki.report import write_report
from tsugiki.training import RecordedBase, RecordedConfig


def saved(folder: Path, base: str, **changed: Any) -> Path:
    model = tiny_model()
    model.name_or_path = base
    save_grafted(folder, model, LoraConfig(r=4))
    run = record(**changed)
    run.base = RecordedBase(name=base, fingerprint=None, dtype="torch.float32")
    run.config = RecordedConfig.model_validate(run.config.to_dict() | {"model": base, "out": str(folder)})
    run.write(folder)
    return folder


def text_of(sent: Publication) -> str:
    return "\n".join(content.decode() for content in sent.files.values() if isinstance(content, bytes))


def test_nothing_private_is_sent(tmp_path: Path):
    home = tmp_path / "home" / "anna"
    base = home / "models" / "mine"
    base.mkdir(parents=True)
    config = {
        "data": str(home / "letters.jsonl"),
        "held_out": "C:\\anna\\held.txt",
        "retention_data": "~/anna/own",
        "prompts": ["/anna is a prompt"],
        "method": "lora",
    }
    data: Any = record().data
    data.near_duplicates.first = [["letters.jsonl:3 To my love", "x"]]
    data.held_out.names = ["letters.jsonl:4 To my love"]
    asked = {"source": "letters.jsonl:9", "question": "my love?", "expected": "my all", "answer": "me", "correct": True}
    figures = {"questions": 1, "correct": 1, "share": 1.0, "share_interval": (0.2, 1.0), "counted": True}
    answers = [{"step": step, "answers": [asked], **figures} for step in (0, 8)]
    folder = saved(tmp_path / "run", str(base), config=config, data=data, answers=answers)
    (folder / "notes.txt").write_text("mine")
    provenance = {"operation": "scale", "sources": [{"name": str(home / "a")}], "settings": {"by": 2}}
    beside = json_of(folder / "tsugiki.json")
    (folder / "tsugiki.json").write_text(json.dumps(beside | {"provenance": provenance}))
    sent = publication(folder, "me/it", published_base(folder, None))
    names = ["adapter_model.safetensors", "adapter_config.json", "tsugiki.json", "run.json", "README.md"]
    assert list(sent.files) == names
    text = text_of(sent)
    for private in (str(tmp_path), "To my love", "~/anna", "C:\\", "models/mine", "my love", "my all"):
        assert private not in text
    run = json.loads(sent.files["run.json"])
    kept = {name: run["config"].get(name) for name in ("data", "held_out", "prompts", "out")}
    assert list(kept.values()) == ["letters.jsonl", "held.txt", ["/anna is a prompt"], None]
    assert [entry["correct"] for entry in run["answers"]] == [1, 1]
    assert run["data"]["near_duplicates"] == {"groups": 1, "records": 2, "first": []}
    assert run["data"]["held_out"]["names"] == []
    assert json.loads(sent.files["adapter_config.json"])["base_model_name_or_path"] is None
    assert json.loads(sent.files["tsugiki.json"])["provenance"]["sources"][0]["name"] == "a"
    assert any("--base" in note for note in sent.notes)


def test_of_a_run_by_a_rule_no_prompt_and_no_rule_is_sent(tmp_path: Path):
    config = {"data": "prompts.jsonl", "method": "lora", "reward": ["command:python /anna/secret.py"]}
    one = {"held_out": [0.5], "validation": [], "length": 3, "distinct": 1, "samples": [["my love?", "yes"]]}
    rounds = [{"round": number, **one} for number in (0, 1)]
    weakened = [rounds[1] | {"strength": 0.5}]
    folder = saved(tmp_path / "run", "embedded", config=config, rounds=rounds, weakened=weakened, kept_round=1)
    samples = [{"step": 0, "prompt": "my love?", "text": "yes"}]
    changed = {"samples": samples, "resolved_settings": {"rules": ["1*command:python /anna/secret.py"]}}
    path = folder / "run.json"
    edit_json(path, **changed)
    sent = publication(folder, "me/it", published_base(folder, None))
    assert not re.search("secret|my love", text_of(sent))
    assert json.loads(sent.files["run.json"])["rounds"][1]["held_out"] == [0.5]


def test_the_base_is_named_as_the_hub_does(tmp_path: Path):
    folder = saved(tmp_path / "run", str(tmp_path))
    sent = publication(folder, "me/it", published_base(folder, "them/base"))
    assert json.loads(sent.files["adapter_config.json"])["base_model_name_or_path"] == "them/base"
    for name in ("tsugiki.json", "run.json"):
        assert json.loads(sent.files[name])["base"]["name"] == "them/base"
    assert "base_model: them/base" in sent.card


@pytest.mark.parametrize(
    ("stored", "given", "named"),
    [
        ("them/base", None, "them/base"),
        ("embedded", None, "embedded"),
        ("~/model", None, None),
        ("C:\\model", None, None),
        ("here", None, None),  # a folder
        ("them/base", "none", None),
        ("/home/me/model", "them/base", "them/base"),
    ],
)
def test_what_is_a_name_of_the_hub(
    stored: str, given: str | None, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert published_base(saved(tmp_path / "run", stored), given) == named


def test_a_base_that_cannot_be_a_name(tmp_path: Path):
    assert_refused("--base.*./mine", published_base, saved(tmp_path / "run", "them/base"), "./mine")


def test_peft_and_tsugiki_load_what_is_sent_without_a_base(tmp_path: Path):
    folder = saved(tmp_path / "run", str(tmp_path))
    (tmp_path / "sent").mkdir()
    for name, content in publication(folder, "me/it", None).files.items():
        (tmp_path / "sent" / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    adapted, ours = tiny_model(), tiny_model()
    load_adapter(adapted, folder)
    load_adapter(ours, tmp_path / "sent")
    assert torch.equal(logits(ours), logits(adapted))
    theirs = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "sent")
    assert float((logits(theirs) - logits(adapted)).abs().max()) < 1e-5
    assert "None" not in write_report(tmp_path / "sent").read_text()


def test_an_adapter_without_a_run(tmp_path: Path):
    folder = saved(tmp_path / "run", "them/base")
    (folder / "run.json").unlink()
    (folder / "tsugiki.json").unlink()  # as PEFT writes it
    sent = publication(folder, "me/it", "them/base", "mit")
    assert list(sent.files) == ["adapter_model.safetensors", "adapter_config.json", "README.md"]
    (note,) = sent.notes
    assert f"{folder} has no run.json" in note
