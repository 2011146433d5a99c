"""Export of models, with and without a merged adapter, as a GGUF file and a Modelfile."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.llama_cpp_logits import llama_cpp_logits
from tests.tiny import ids, logits, relative_error, save_tiny, shake
from tsugiki import LoraConfig, TsugikiError, graft, load_adapter, save_adapter
from tsugiki.export import export_model, merged_model, stored_model, write_model_gguf


def load_plain(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["lm_head"]])
def test_a_merged_model_gives_the_adapted_logits(targets: list[str], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2")
    model = shake(graft(load_plain(folder), LoraConfig(r=4, lora_alpha=8, target_modules=targets)))
    save_adapter(model, tmp_path / "adapter")
    with pytest.warns(UserWarning, match="two weights") if targets == ["lm_head"] else nullcontext():
        source = merged_model(folder, tmp_path / "adapter", allow_base_mismatch=True)
    write_model_gguf(source, tmp_path / "m.gguf")
    row = ids(1, 20, 257)
    adapted = load_adapter(load_plain(folder), tmp_path / "adapter", allow_base_mismatch=True)
    assert relative_error(logits(adapted, row), logits(load_plain(folder), row)) > 0.05
    assert relative_error(llama_cpp_logits(tmp_path / "m.gguf", row[0].tolist()), logits(adapted, row)[0]) < 2e-3


def test_an_export_writes_a_modelfile_and_no_other_file(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2")
    (tmp_path / "out").mkdir()
    written, _ = export_model(stored_model(folder), tmp_path / "out" / "tale.gguf")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tale.Modelfile", "tale.gguf"]
    assert (tmp_path / "out" / "tale.Modelfile").read_text() == "FROM ./tale.gguf\nPARAMETER num_ctx 64\n"
    assert written.bytes == (tmp_path / "out" / "tale.gguf").stat().st_size


def test_broken_tensors_are_named_and_no_file_remains(tmp_path: Path) -> None:
    folder = Path(save_tiny(tmp_path / "model", "llama"))
    path = folder / "model.safetensors"
    good = load_file(path)

    def message(change: dict[str, Any], dtype: Any = None) -> str:
        save_file({key: t for key, t in {**good, **change}.items() if t is not None}, path)
        with pytest.raises(TsugikiError) as error:
            export_model(stored_model(str(folder)), tmp_path / "m.gguf", dtype)
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
        return str(error.value)

    up, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    assert "output_norm.weight is not finite" in message({norm: torch.full([32], float("nan"))})
    assert "blk.1.ffn_up.weight is not finite" in message({up: good[up] / 0})
    assert f"{up} is missing" in message({up: None})
    assert f"{up} is [48, 31], and the config says [48, 32]" in message({up: good[up][:, :31].contiguous()})
    assert f"{up} is of torch.int8" in message({up: good[up].to(torch.int8)})
    assert "model.layers.2.mlp" in message({"model.layers.2.mlp.up_proj.weight": good[up] * 1})
    assert "blk.1.ffn_up.weight is too large for f16" in message({up: good[up] * 1e7}, "f16")
