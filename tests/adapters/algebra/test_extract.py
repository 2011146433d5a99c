"""An adapter out of two models' files."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.adapters.algebra.test_matrices import updates
from tests.tiny import ids, logits, relative_error, save_tiny
from tsugiki import LoraConfig, TsugikiError, active_adapter, graft, load_adapter, merge, ungraft
from tsugiki.adapters import extract, write_lora_weights
from tsugiki.base import load_model
from tsugiki.io import MODEL_FILE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

BOTH = {"gpt2": ["c_attn", "mlp.c_proj", "wte", "lm_head"], "llama": ["q_proj", "down_proj", "embed_tokens", "lm_head"]}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return save_tiny(tmp_path / "base")


def changed(base: str, out: Path, *names: str, scale: float = 0.02) -> str:
    """The base with noise on some of its tensors."""
    shutil.copytree(base, out)
    tensors = load_file(out / MODEL_FILE)
    for name in names:
        noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))
        tensors[name] = tensors[name] + scale * noise
    save_file(tensors, out / MODEL_FILE, metadata={"format": "pt"})
    return str(out)


@pytest.mark.parametrize("table", [[], ["wte"]])
def test_what_was_merged_is_found_again(table: list[str], base: str, tmp_path: Path):
    """With a table whose other use, the head, stays: the merged model has two weights where the base has one."""
    targets = ["c_attn", "mlp.c_proj", *table]
    model = load_model(base)
    adapter = active_adapter(graft(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)))
    deltas = {path: pair.delta().detach() for path, pair in adapter.pairs.items()}
    merged = ungraft(merge(model))
    merged.save_pretrained(tmp_path / "merged")
    found = extract(str(tmp_path / "merged"), base, 4, [*targets, "c_fc"])
    assert found.lora.layers.keys() == deltas.keys()
    assert {path: layer.r for path, layer in found.lora.layers.items()} == dict.fromkeys(deltas, 4)
    for path, layer in found.lora.layers.items():
        assert relative_error(updates(layer)[0], deltas[path]) < 1e-5
        assert found.kept[path].energy == pytest.approx(1, abs=1e-6)
    assert found.energy == pytest.approx(1, abs=1e-6)
    assert (found.not_captured, len(found.unchanged)) == ({}, 2)
    write_lora_weights(found.lora, tmp_path / "found", None)
    ours = load_model(base)
    load_adapter(ours, tmp_path / "found")  # which holds the base's fingerprint against this one's
    assert relative_error(logits(ours), logits(merged)) < 1e-5


@pytest.mark.parametrize("kind", BOTH)
def test_a_rank_of_a_whole_training_is_the_best_there_is(kind: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base", kind)
    model = load_model(base)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(4):
        model(input_ids=ids(seed=step, vocabulary=257), labels=ids(seed=step, vocabulary=257)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "trained")
    found = extract(str(tmp_path / "trained"), base, 5, BOTH[kind])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole = kept = 0.0
    for path, layer in found.lora.layers.items():
        delta = (parameters[f"{path}.weight"] - before[f"{path}.weight"]).detach().double()
        if layer.embedding or (kind == "gpt2" and path != "lm_head"):
            delta = delta.T
        U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
        best = U[:, :5] * S[:5] @ Vh[:5]
        assert (updates(layer)[0] - best).norm() / best.norm() < 0.05, path  # of a spectrum that falls slowly
        assert found.kept[path].energy == pytest.approx(float(S[:5].square().sum() / S.square().sum()), rel=2e-3)
        kept, whole = kept + found.kept[path].kept, whole + found.kept[path].total
    rest = [name for name in parameters if name.removesuffix(".weight") not in found.lora.layers]
    assert found.not_captured.keys() == set(rest)
    lost = {name: float((parameters[name] - before[name]).detach().double().square().sum()) for name in rest}
    assert found.not_captured == pytest.approx(lost, rel=1e-4)
    assert found.energy == pytest.approx(kept / (whole + sum(lost.values())), rel=1e-4)


def test_what_the_adapter_does_not_reach_is_said(base: str, tmp_path: Path):
    names = ["transformer.h.0.attn.c_attn.weight", "transformer.h.1.ln_1.weight", "transformer.wte.weight"]
    model = changed(base, tmp_path / "trained", *names)
    found = extract(model, base, 2)
    assert list(found.lora.layers) == ["transformer.h.0.attn.c_attn"]
    assert found.lora.config.target_modules == ["0.attn.c_attn"]
    assert found.not_captured.keys() == {"transformer.wte.weight", "transformer.h.1.ln_1.weight"}
    one_use = extract(model, base, 2, ["wte", "c_attn"])  # the head's change is not in it
    assert one_use.not_captured.keys() == {"lm_head.weight", "transformer.h.1.ln_1.weight"}


def test_files_without_the_prefix_and_in_pieces_and_in_sixteen_bits(base: str, tmp_path: Path):
    model = changed(base, tmp_path / "trained", "transformer.h.0.attn.c_attn.weight", scale=1)
    expected = extract(model, base, 4)
    tensors = load_file(tmp_path / "trained" / MODEL_FILE)
    headless = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in tensors.items()}
    (tmp_path / "trained" / MODEL_FILE).unlink()
    index = {}
    for i in range(2):
        part, name = dict(list(headless.items())[i::2]), f"model-0000{i + 1}-of-00002.safetensors"
        save_file(part, tmp_path / "trained" / name)
        index |= dict.fromkeys(part, name)
    (tmp_path / "trained" / f"{MODEL_FILE}.index.json").write_text(json.dumps({"weight_map": index}))
    found = extract(model, base, 4)
    layer = "transformer.h.0.attn.c_attn"
    assert relative_error(updates(found.lora.layers[layer])[0], updates(expected.lora.layers[layer])[0]) < 0.02


def test_models_that_are_no_pair(base: str, tmp_path: Path):
    with pytest.raises(TsugikiError, match="none of the 8 .* layers of .* differs from"):
        extract(base, base, 4)
    norm = changed(base, tmp_path / "norm", "transformer.h.1.ln_1.weight")
    with pytest.raises(TsugikiError, match="differs from .*; .*transformer.h.1.ln_1.weight"):
        extract(norm, base, 4)
    other = save_tiny(tmp_path / "wide", "gpt2", n_embd=64)
    with pytest.raises(TsugikiError, match=r"c_attn.weight is \[64, 192\] in .* and \[32, 96\] in"):
        extract(other, base, 4)
    with pytest.raises(TsugikiError, match="transformer.h.0.attn.c_attn.weight"):
        extract(save_tiny(tmp_path / "llama", "llama"), base, 4)
    with pytest.raises(TsugikiError, match="target_modules="):
        extract(norm, base, 4, ["q_proj"])
    with pytest.raises(TsugikiError, match=r"\br\b.* 0"):
        extract(norm, base, 0)


def test_another_config_is_said(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "llama")
    tuned = changed(base, tmp_path / "tuned", "model.layers.0.self_attn.q_proj.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract(tuned, base, 2)
    config = AutoConfig.from_pretrained(tuned)
    config.rope_parameters["rope_theta"] = 5e5
    config.save_pretrained(tuned)
    with pytest.warns(UserWarning, match=r"rope_parameters.rope_theta is 500000.0 and 10000.0"):
        extract(tuned, base, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight * torch.nan, "is broken: transformer.h.0.attn.c_attn.weight is not finite"),
        (lambda weight: weight.to(torch.int8), "as torch.int8"),
    ],
)
def test_broken_models(change: Any, said: str, base: str, tmp_path: Path):
    name = "transformer.h.0.attn.c_attn.weight"
    model = changed(base, tmp_path / "trained", name)
    path = tmp_path / "trained" / MODEL_FILE
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name])}, path)
    with pytest.raises(TsugikiError, match=said):
        extract(model, base, 4)
