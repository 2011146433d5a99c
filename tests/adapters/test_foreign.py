"""`tsugiki adapters import`: files made as mlx-lm and PEFT on a wrapped model make them.

What such a file computes is written down here once more: the weights of the base in the program's own layout, with the
program's own sum, are put back into the base.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.errors import assert_refused
from tests.files import json_of
from tests.tiny import logits, relative_error, save_grafted, save_tiny, seeded
from tests.tiny_types import lively_model
from tsugiki import LoraConfig, load_adapter
from tsugiki.adapters import import_adapter, read_adapter_files, read_metadata
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


@pytest.mark.parametrize("config", [LoraConfig(r=2, modules_to_save=["ln_f"]), IA3Config()])
def test_names_of_a_wrapped_model(config: Any, tmp_path: Path):
    base, folder = save_tiny(tmp_path / "base", "gpt2"), tmp_path / "a"
    expected = logits(save_grafted(folder, load_model(base), config))
    (folder / "tsugiki.json").unlink()
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(".h.", "._orig_mod.h."): tensor for name, tensor in load_file(file).items()}, file)
    assert_refused("adapters import FOLDER", load_adapter, load_model(base), folder)
    import_adapter(folder, base, tmp_path / "b")
    assert torch.equal(logits(load_adapter(load_model(base), tmp_path / "b")), expected)
    assert json_of(tmp_path / "b" / "adapter_config.json")["base_model_name_or_path"] == base


def test_a_pickle_is_never_loaded(tmp_path: Path):
    base, folder = save_tiny(tmp_path / "base", "gpt2"), tmp_path / "a"
    save_grafted(folder, load_model(base), LoraConfig(r=2))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    said = r"adapter_model\.bin is a pickle, which can run code, so it is not loaded"
    assert_refused(said, load_adapter, load_model(base), folder)
    assert_refused(said, import_adapter, folder, base, tmp_path / "b")


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
        (llama, tmp_path / "adapter_model.pt", "it is a zip archive, as torch.save writes"),  # torchtune's
        (llama, tmp_path / "empty", "neither"),
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
