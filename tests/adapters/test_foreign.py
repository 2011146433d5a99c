"""`tsugiki adapters import`: files made as mlx-lm and old releases of PEFT make them.

What such a file computes is written down here once more: the weights of the base in the program's own layout, with the
program's own sum, are put back into the base.
"""

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.errors import assert_refused, refused
from tests.files import json_of
from tests.tiny import logits, relative_error, save_grafted, save_tiny, seeded
from tests.tiny_types import lively_model
from tsugiki import LoraConfig, TsugikiError, load_adapter
from tsugiki.adapters import import_adapter, read_adapter_files, read_metadata, read_tensors
from tsugiki.base import load_model
from tsugiki.methods import IA3Config

pytestmark = pytest.mark.filterwarnings("ignore")

R = 3
Weights = dict[str, Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed + sum(shape))) * 0.2


def weights_of(base: str) -> Weights:
    return {name: tensor.clone() for name, tensor in load_model(base).state_dict().items()}


def assert_computes(base: str, path: Path, out: Path, expected: Weights) -> None:
    """The imported adapter computes what a model with the expected weights computes, in Tsugiki and in PEFT."""
    import_adapter(path, base, out)
    model = load_model(base)
    before = logits(model)
    model.load_state_dict(expected)
    wanted = logits(model)
    assert relative_error(wanted, before) > 1e-2
    assert relative_error(logits(load_adapter(load_model(base), out)), wanted) < 1e-5
    theirs = peft.PeftModel.from_pretrained(load_model(base), out).eval()
    assert relative_error(logits(theirs), wanted) < 1e-5
    assert read_metadata(out).provenance is not None
    assert not read_adapter_files(out).problems


def base_of(folder: Path, kind: str) -> str:
    lively_model(kind).save_pretrained(folder)
    return str(folder)


# mlx-lm ------------------------------------------------------------------------------------------------------------


def write_mlx(folder: Path, tensors: Mapping[str, Tensor], kind: str = "lora", **parameters: Any) -> Path:
    """adapters.safetensors and the settings of the run, as `mlx_lm.lora` writes them."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapters.safetensors")
    settings = {"rank": R, "dropout": 0.0, "scale": 20.0, **parameters}
    fields = {"fine_tune_type": kind, "num_layers": 1, "model": "base", "lora_parameters": settings, "iters": 10}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_lm(dora: bool, tmp_path: Path):
    """Its weights are [out, in], its factors transposed; it adapts the last blocks alone."""
    base = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=False)
    weights, tensors = weights_of(base), {}
    layers = ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"]
    for layer in [*layers, *([] if dora else ["model.embed_tokens"])]:
        weight = weights[f"{layer}.weight"]
        rows, columns = weight.shape if "embed" in layer else weight.T.shape
        a, b = noise(rows, R), noise(R, columns, seed=1)
        tensors |= {f"{layer}.lora_a": a, f"{layer}.lora_b": b}
        summed = weight + 20 * (a @ b if "embed" in layer else (a @ b).T)
        if dora:
            tensors[f"{layer}.m"] = m = weight.norm(dim=1) * (1 + noise(len(weight)))
            summed = summed * (m / summed.norm(dim=1))[:, None]
        weights[f"{layer}.weight"] = summed
    folder = write_mlx(tmp_path / "mlx", tensors, "dora" if dora else "lora")
    assert_computes(base, folder, tmp_path / "out", weights)


def test_mlx_lm_names_gpt2_otherwise(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "gpt2")
    weights, a, b = weights_of(base), noise(32, R), noise(R, 96)
    weights["transformer.h.1.attn.c_attn.weight"] += 2 * a @ b  # a Conv1D's weight is [in, out]
    tensors = {"model.h.1.attn.c_attn.lora_a": a, "model.h.1.attn.c_attn.lora_b": b}
    assert_computes(base, write_mlx(tmp_path / "mlx", tensors, scale=2.0), tmp_path / "out", weights)


def test_factors_of_all_experts_of_mlx_lm_are_refused(tmp_path: Path):
    base, layer = base_of(tmp_path / "base", "mixtral"), "model.layers.0.block_sparse_moe.switch_mlp.up_proj"
    tensors = {f"{layer}.lora_a": noise(4, R, 32), f"{layer}.lora_b": noise(4, 32, R)}
    assert_refused(
        "switch_mlp.up_proj has factors for every expert",
        import_adapter,
        write_mlx(tmp_path / "mlx", tensors),
        base,
        tmp_path / "out",
    )


# PEFT --------------------------------------------------------------------------------------------------------------


def as_bin(folder: Path, legacy: bool = False) -> None:
    """Replace the weights of PEFT's folder by the file of PEFT before 0.7."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "tsugiki.json").unlink()
    torch.save(tensors, folder / "adapter_model.bin", _use_new_zipfile_serialization=not legacy)


@pytest.mark.parametrize("config", [LoraConfig(r=2, modules_to_save=["ln_f"]), IA3Config()])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_bin_of_peft(config: Any, legacy: bool, tmp_path: Path):
    base = save_tiny(tmp_path / "base", "gpt2")
    expected = logits(save_grafted(tmp_path / "a", load_model(base), config))
    as_bin(tmp_path / "a", legacy=legacy)
    assert_refused(r"adapters import` converts its adapter_model\.bin", load_adapter, load_model(base), tmp_path / "a")
    import_adapter(tmp_path / "a", base, tmp_path / "b")
    assert torch.equal(logits(load_adapter(load_model(base), tmp_path / "b")), expected)
    assert json_of(tmp_path / "b" / "adapter_config.json")["base_model_name_or_path"] == base


class Malicious:
    """What a pickle may hold: a function that is called when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle", "nested", "legacy"])
def test_a_pickle_with_code_is_refused_and_the_code_is_not_run(writer: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base", "gpt2")
    save_grafted(tmp_path / "a", load_model(base), LoraConfig(r=2))
    as_bin(tmp_path / "a")
    file, trap = tmp_path / "a" / "adapter_model.bin", tmp_path / "was-run"
    content: Any = {"base_model.model.x.lora_A.weight": torch.zeros(1), "y": Malicious(trap)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(Malicious(trap)))
    elif writer == "nested":
        torch.save({"model": content}, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
    with refused(r"adapter_model\.bin holds (posix\.mkdir|other objects).*not loaded"):
        import_adapter(tmp_path / "a", base, tmp_path / "b")
    assert not trap.exists()
    assert not (tmp_path / "b").exists()
    with pytest.raises(TsugikiError):
        load_adapter(load_model(base), tmp_path / "a")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists(), "it is a trap that works"


# What cannot be converted ------------------------------------------------------------------------------------------


def test_the_true_reason(tmp_path: Path):
    llama = save_tiny(tmp_path / "llama", "llama", tie_word_embeddings=False)
    tied = save_tiny(tmp_path / "tied", "llama", tie_word_embeddings=True)
    q, embedding = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
    pair = {f"{q}.lora_a": noise(32, R), f"{q}.lora_b": noise(R, 32)}
    cases: list[tuple[str, Path, str]] = [
        (llama, write_mlx(tmp_path / "alpha", pair, alpha=16), "alpha 16.*remove alpha"),
        (llama, write_mlx(tmp_path / "half", {f"{q}.lora_a": noise(32, R)}), "q_proj has no lora_b"),
        (llama, write_mlx(tmp_path / "wide", {**pair, f"{q}.lora_a": noise(31, R)}), r"q_proj.*\[3, 31\].*\[3, 32\]"),
        (llama, write_mlx(tmp_path / "nan", {**pair, f"{q}.lora_a": noise(32, R) / 0}), "not finite"),
        (llama, write_mlx(tmp_path / "full", {f"{q}.weight": noise(32, 32)}, "full"), r"q_proj\.weight is not a name"),
        (llama, tmp_path / "kohya", "lora_down.weight is not a name"),  # an adapter of an image model
        (llama, tmp_path / "adapter_model.pt", "save the adapter in PEFT's format"),  # torchtune's
        (llama, tmp_path / "empty", "none of"),
        (llama, tmp_path / "gone", "no file or folder"),
    ]
    tensors = {f"{embedding}.lora_a": noise(257, R), f"{embedding}.lora_b": noise(R, 32)}
    cases.append((tied, write_mlx(tmp_path / "tied-mlx", tensors), "embed_tokens.*shares its weight"))
    for name in ("kohya", "empty"):
        (tmp_path / name).mkdir()
    unet = {"lora_unet_down_blocks_0.lora_down.weight": noise(2, 2)}
    save_file(unet, tmp_path / "kohya" / "adapter_model.safetensors")
    torch.save({"layers.0.attn.q_proj.lora_a.weight": noise(R, 32)}, tmp_path / "adapter_model.pt")
    for base, path, message in cases:
        assert_refused(message, import_adapter, path, base, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", pickle.dumps([1, 2])])
def test_files_that_hold_no_tensors_are_errors_of_one_line(content: bytes, tmp_path: Path):
    for name in ("adapter_model.bin", "adapters.safetensors"):
        (tmp_path / name).write_bytes(content)
        assert_refused(name, read_tensors, tmp_path / name)


def test_tensors_without_ordinary_numbers_are_refused(tmp_path: Path):
    tensor, file = noise(2, 4), tmp_path / "adapter_model.bin"
    quantised = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    for unusual in (tensor.to_sparse(), tensor.to("meta"), quantised, torch.nested.nested_tensor([*tensor])):
        torch.save({"base_model.model.x.lora_A.weight": unusual}, file)
        # torch 2.15 does not unpickle a nested one.
        refused = r"x\.lora_A\.weight is sparse, quantised, nested|holds torch\._utils\._rebuild_nested_tensor"
        assert_refused(refused, read_tensors, file)
