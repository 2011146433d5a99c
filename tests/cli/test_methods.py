"""`tsugiki methods`: the table, counted without weights, and the description of each method."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, JambaConfig

from tests.runs import TRAIN
from tests.tiny import save_tiny
from tsugiki import graft, trainable_parameters
from tsugiki.methods import METHODS, family_of
from tsugiki.report import describe_method, methods_table
from tsugiki.training import RunConfig

NEEDS_SETTINGS = {"select"}


@pytest.mark.filterwarnings("ignore:lm_head shares")
def test_the_table_has_every_method_with_the_parameters_that_a_run_trains(base: str, run):
    headers, rows = methods_table(base)
    table = {row[0]: dict(zip(headers, row, strict=True)) for row in rows}
    assert list(table) == list(METHODS)
    for name in set(METHODS) - NEEDS_SETTINGS - {"full"}:
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        graft(model, RunConfig(model=base, data="-", out="-", method=name).adapter_config)
        trained = sum(p.numel() for p in trainable_parameters(model).values())
        share = trained / sum(p.numel() for p in model.parameters())
        assert table[name]["trainable parameters"] == f"{trained:,} ({share:.2%})", name
    assert table["select"]["trainable parameters"] == "requires settings: target_parameters is empty"
    assert [table[name]["PEFT reads it"] for name in ("norms", "bitfit")] == ["yes", "no"]
    assert table["bitfit"]["family"] == family_of("bitfit") == "selective"
    assert family_of("full") == "full fine-tuning"
    out = run("methods", "--model", base)[1]
    assert [row[0] for row in rows if f" {row[0]} " not in out] == []


def test_a_method_that_does_not_fit_gives_the_reason_in_its_cell(tmp_path: Path):
    headers, rows = methods_table(save_tiny(tmp_path / "llama", "llama"))
    cell = next(row for row in rows if row[0] == "bitfit")[headers.index("trainable parameters")]
    assert cell.startswith("does not fit: target_parameters=bias matches no parameter")
    assert len(cell) <= 60


def test_no_weights_are_read(base: str):
    (weights,) = Path(base).glob("*.safetensors")
    before = methods_table(base)
    weights.unlink()
    assert methods_table(base) == before


@pytest.mark.parametrize("name", list(METHODS))
def test_each_method_has_formula_paper_and_settings(name: str, base: str, run):
    status, out, _ = run("methods", name, "--model", base)
    assert status == 0
    fact = " ".join(out.split())
    assert fact.startswith(f"{name} · ")
    assert METHODS[name].formula.split()[0] in fact
    if name != "full":
        assert "arXiv:" in fact
        for one in dataclasses.fields(METHODS[name].config):
            assert one.name in fact


def test_settings_have_defaults_and_descriptions(base: str):
    _, (headers, rows), notes = describe_method("rslora", base)
    settings = {row[0]: row for row in rows}
    assert headers[0] == "--set NAME=VALUE, or lora: in the YAML file"
    assert settings["lora_alpha"][1] == "32", "what a run takes, not what the class says"
    assert "rank of the update; A is [r, in], B is [out, r]" in settings["r"][2]
    assert "use_rslora" not in settings
    assert any("use_rslora is True" in note for note in notes)
    assert describe_method("norms", base)[1][0][0] == "--set NAME=VALUE, or method_config: in the YAML file"


def test_brackets_are_printed(base: str, run):
    assert "A is [r, in]" in " ".join(run("methods", "lora", "--model", base)[1].replace("│", " ").split())


def test_settings_given_by_flag_reach_the_method(base: str, run):
    given = ("--method", "select", "--set", "target_parameters=[ln_f.weight, c_fc.bias]")
    assert run("train", "--model", base, *TRAIN, *given)[0] == 0
    selected = {".".join(name.split(".")[-2:]) for name in load_file("run/adapter_model.safetensors")}
    assert selected == {"ln_f.weight", "c_fc.bias"}


def test_targets_lists_the_linear_layers_with_the_reason_where_one_is_left_out(tmp_path: Path, run):
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    jamba = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 8}
    JambaConfig(vocab_size=96, **settings, **jamba).save_pretrained(tmp_path)
    status, out, _ = run("methods", "targets", "--model", str(tmp_path))
    assert status == 0
    lines = {parts[1]: parts[2:6] for line in out.splitlines() if len(parts := re.split(r"\s*[│┃]\s*", line)) > 5}
    assert lines["model.layers.*.self_attn.k_proj"] == ["2", "32 → 16", "yes", "768"]
    assert lines["model.layers.*.mamba.in_proj"] == ["2", "32 → 128", "yes", "2,560"]
    for name in ("x_proj", "dt_proj"):
        left_out = ["no: its weight is read by a fused kernel on GPUs", "–"]
        assert lines[f"model.layers.*.mamba.{name}"][2:] == left_out
    assert lines["lm_head"] == ["1", "32 → 96", "no: outside of the blocks", "–"]
    experts = ["2", "16 × (32 → 96)", "no: experts; target_parameters adapts them", "–"]
    assert lines["model.layers.*.feed_forward.experts.gate_up_proj"] == experts
    assert "16 of 23 linear layers, 9,984 trainable parameters" in out

    status, out, _ = run("methods", "targets")
    assert re.search(r"transformer\.h\.\*\.mlp\.c_fc .* yes ", out)
    assert re.search(r"lm_head .* no: outside of the blocks ", out)


def test_settings_are_described_in_the_language_of_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def meanings() -> dict[str, str]:
        return {name: meaning for name, _, meaning in describe_method("lora", "embedded")[1][1]}

    english = meanings()
    monkeypatch.setenv("TSUGIKI_LANG", "ja")
    japanese = meanings()
    assert japanese.keys() == english.keys()
    assert not [name for name in english if english[name] == japanese[name]]
    assert "[r, 入力]" in japanese["r"]
