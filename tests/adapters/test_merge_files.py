"""Merging from file to file: PEFT and the merge in memory as oracles, and everything else to the byte."""

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters.folders import edit_weights
from tests.adapters.test_format import CASES, settings
from tests.errors import assert_refused, refused
from tests.files import json_of
from tests.tiny import logits, relative_error, save_grafted, save_tiny, shake, tiny_model
from tests.tiny_types import lively_model
from tsugiki import LoraConfig, graft, load_adapter, merge, save_adapter, ungraft
from tsugiki.adapters import RoundingLoss, plan_merge, write_merged
from tsugiki.base import load_model
from tsugiki.io import new_folder
from tsugiki.methods import METHODS, SelectiveConfig

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

MERGE = sorted(name for name, method in METHODS.items() if method.mergeable)
GIVEN: dict[str, Any] = {"select": {"target_parameters": ["ln_f.weight", "c_fc.bias", "wte.weight"]}}


def save_base(folder: Path, kind: str = "gpt2", dtype: torch.dtype = torch.float32, **fields: Any) -> str:
    tiny_model(kind).to(dtype).save_pretrained(folder, **fields)
    return str(folder)


def merged_into(out: Path, base: str, *adapters: Path, weights: list[float] | None = None) -> RoundingLoss:
    with new_folder(out) as part:
        return write_merged(plan_merge(base, adapters, weights), part)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}


def merge_of(folder: Path, base: str, **fields: Any) -> Any:
    """Merge an adapter into a copy of the base, `folder / "merged"`; returns the model with it."""
    model = adapter_on(base, folder / "adapter", **fields)
    merged_into(folder / "merged", base, folder / "adapter")
    return model


def adapter_on(base: str, folder: Path, seed: int = 3, **fields: Any) -> Any:
    """Save a shaken LoRA adapter; returns the model with it."""
    return save_grafted(folder, load_model(base, "auto"), LoraConfig(**{"r": 4, "lora_alpha": 12, **fields}), seed)


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_pefts_adapters_on_every_kind_of_base(kind: str, variant: str, tmp_path: Path):
    base = save_base(tmp_path / "base", kind)
    theirs = peft.get_peft_model(
        load_model(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings(kind, variant))
    ).eval()
    shake(theirs).save_pretrained(tmp_path / "adapter")
    adapted = logits(theirs)
    merged_into(tmp_path / "merged", base, tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(logits(again), adapted) < 1e-5
    shared = "embedding" in variant and kind != "llama"
    if not shared:  # PEFT's merge moves both ends of a shared weight
        for name, weight in theirs.merge_and_unload().named_parameters():
            assert relative_error(again.get_parameter(name), weight) < 1e-6, name
    in_memory = load_adapter(load_model(base), tmp_path / "adapter")
    ungraft(merge(in_memory)).save_pretrained(tmp_path / "in memory")
    there, here = weights_of(tmp_path / "in memory"), weights_of(tmp_path / "merged")
    assert there.keys() == here.keys()
    assert all(torch.equal(there[key], here[key]) for key in there)
    configs = [json_of(tmp_path / folder / "config.json") for folder in ("in memory", "merged")]
    assert configs[0]["tie_word_embeddings"] == configs[1]["tie_word_embeddings"] == (kind != "llama" and not shared)


@pytest.mark.parametrize("name", MERGE)
def test_every_method_that_merges_gives_what_it_gives_in_memory(name: str, tmp_path: Path):
    base = save_base(tmp_path / "base")
    model = save_grafted(tmp_path / "adapter", load_model(base), METHODS[name].configure(GIVEN.get(name, {})))
    expected = dict(ungraft(merge(model)).named_parameters(remove_duplicate=False))
    merged_into(tmp_path / "merged", base, tmp_path / "adapter")
    again = load_model(str(tmp_path / "merged"))
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings
    for path, weight in again.named_parameters(remove_duplicate=False):
        assert relative_error(weight, expected[path]) < 1e-6, path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_types_of_the_files_stay(dtype: torch.dtype, tmp_path: Path):
    base = save_base(tmp_path / "base", "llama", dtype)
    model = adapter_on(base, tmp_path / "adapter")
    rounding = merged_into(tmp_path / "merged", base, tmp_path / "adapter")
    before, after = weights_of(tmp_path / "base"), weights_of(tmp_path / "merged")
    pairs = {f"{path}.weight": pair for path, pair in model._tsugiki.adapters["default"].pairs.items()}
    lost = whole = 0.0
    for key, weight in before.items():
        assert after[key].dtype == dtype
        exact = weight.double() + pairs[key].delta().detach().double() if key in pairs else weight.double()
        assert torch.equal(after[key], exact.float().to(dtype)), key
        lost += float((after[key].double() - exact).square().sum())
        whole += float((exact - weight.double()).square().sum())
    assert rounding.share == pytest.approx(math.sqrt(lost / whole), rel=1e-3)
    assert 1e-5 < rounding.share < 0.1


def test_what_does_not_change_stays_to_the_byte(tmp_path: Path):
    base = save_base(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors |= {"from.elsewhere": torch.arange(5), "nothing": torch.empty(0, 3), "one": torch.tensor(2.0)}
    save_file(tensors, path, metadata={"format": "pt", "of": "ours"})
    merge_of(tmp_path, base)
    after = tmp_path / "merged" / "model.safetensors"
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert after.read_bytes()[:length] == path.read_bytes()[:length]
    with safe_open(after, "pt") as file:
        assert file.metadata() == {"format": "pt", "of": "ours"}
    changed = {key for key, tensor in load_file(after).items() if not torch.equal(tensor, tensors[key])}
    targets = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{i}.{target}.weight" for i in range(2) for target in targets}


@pytest.mark.parametrize("targets", [["c_attn"], ["lm_head"]])
def test_shards_give_what_one_file_gives(targets: list[str], tmp_path: Path):
    whole = save_base(tmp_path / "whole")
    parts = save_base(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 3
    adapter_on(whole, tmp_path / "adapter", target_modules=targets)
    for base in (whole, parts):
        merged_into(Path(f"{base}-merged"), base, tmp_path / "adapter")
    one, many = weights_of(tmp_path / "whole-merged"), weights_of(tmp_path / "parts-merged")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)
    index, before = (json_of(tmp_path / n / "model.safetensors.index.json") for n in ("parts-merged", "parts"))
    assert index["weight_map"].keys() == one.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    assert (index == before) == (targets == ["c_attn"])
    assert torch.equal(
        logits(load_model(str(tmp_path / "parts-merged"))), logits(load_model(str(tmp_path / "whole-merged")))
    )


@pytest.mark.parametrize(
    ("kind", "targets", "key"),
    [("gpt2", ["wte", "c_attn"], "h.0.attn.c_attn.weight"), ("gpt_neox", ["lm_head", "dense"], "embed_out.weight")],
)
def test_keys_that_transformers_renames(kind: str, targets: list[str], key: str, tmp_path: Path):
    base = save_base(tmp_path / "base", kind)
    path = tmp_path / "base" / "model.safetensors"  # without the prefix, as OpenAI's GPT-2 is stored
    bare = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(bare, path, metadata={"format": "pt"})
    assert key in weights_of(tmp_path / "base")
    adapted = logits(merge_of(tmp_path, base, target_modules=targets))
    assert key in weights_of(tmp_path / "merged")
    assert relative_error(logits(load_model(str(tmp_path / "merged"))), adapted) < 1e-5


@pytest.mark.parametrize("how", ["beside the experts", "the experts"])
def test_experts_that_transformers_puts_together(how: str, tmp_path: Path):
    lively_model("mixtral").save_pretrained(tmp_path / "base")
    assert any("experts.1.w1" in key for key in weights_of(tmp_path / "base"))
    base = str(tmp_path / "base")
    model = load_model(base)
    experts = SelectiveConfig(target_parameters=["experts.gate_up_proj"])
    graft(model, experts if how == "the experts" else LoraConfig(target_modules=["q_proj", "o_proj"]))
    save_adapter(shake(model), tmp_path / "adapter")
    plan = plan_merge(base, [tmp_path / "adapter"])
    assert bool(plan.in_memory) == (how == "the experts")
    merged_into(tmp_path / "merged", base, tmp_path / "adapter")
    assert weights_of(tmp_path / "merged").keys() == weights_of(tmp_path / "base").keys()
    assert relative_error(logits(load_model(str(tmp_path / "merged"))), logits(model)) < 1e-5


def test_several_are_summed_and_weighted(tmp_path: Path):
    base = save_base(tmp_path / "base")
    given: list[tuple[float, dict[str, Any]]] = [
        (0.5, {"target_modules": ["c_attn", "wte"]}),
        (-2.0, {"target_modules": ["c_attn", "c_proj"], "r": 2, "use_rslora": True}),
        (1.0, {"init_lora_weights": "pissa"}),
    ]
    folders = [tmp_path / str(i) for i in range(3)]
    expected = {key: tensor.double() for key, tensor in weights_of(tmp_path / "base").items()}
    for i, (weight, fields) in enumerate(given):
        adapter = adapter_on(base, folders[i], i, **fields)._tsugiki.adapters["default"]
        for path, pair in adapter.pairs.items():
            expected[f"{path}.weight"] += weight * pair.delta().detach().double().T
    merged_into(tmp_path / "merged", base, *folders, weights=[weight for weight, _ in given])
    after = weights_of(tmp_path / "merged")
    assert after.keys() - expected.keys() == {"lm_head.weight"}, "untied by the first adapter"
    for key, weight in expected.items():
        assert relative_error(after[key], weight) < 1e-6, key


def test_what_belongs_to_the_model_comes_along(tmp_path: Path):
    base = Path(save_tiny(tmp_path / "base"))
    kept = {
        **{"generation_config.json": '{"top_p": 0.5}', "chat_template.jinja": "{{ messages }}", "LICENSE": "free"},
        **{"merges.txt": "a b", "spiece.model": "x", "additional_chat_templates/rag.jinja": "{{ documents }}"},
    }
    left = ["pytorch_model.bin", "model.py", "README.md", ".hidden.json", "run.json", "x.index.json", "x.pt"]
    (base / "additional_chat_templates").mkdir()
    for name, text in (kept | dict.fromkeys(left, "{}")).items():
        (base / name).write_text(text)
    (base / "blob").write_text('{"a": 1}')  # the hub's cache has links as well
    (base / "special_tokens_map.json").unlink(missing_ok=True)
    (base / "special_tokens_map.json").symlink_to("blob")
    merge_of(tmp_path, str(base))
    for name in (*kept, "special_tokens_map.json", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes(), name
        assert not (tmp_path / "merged" / name).is_symlink()
    assert not [name for name in left if (tmp_path / "merged" / name).exists()]


KEY = "transformer.h.1.attn.c_attn.weight"


def _spoil(folder: Path, how: str) -> None:
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    edits: dict[str, Any] = {
        "shape": lambda tensor: tensor[:, :32].contiguous(),
        "codes": lambda tensor: tensor.to(torch.int8),
        "overflow": lambda tensor: tensor.half(),
    }
    weight = tensors.pop(KEY)
    save_file(tensors | ({KEY: edits[how](weight)} if how in edits else {}), path)
    if how == "overflow":
        edit_weights(folder / "adapter", lambda tensors: [tensor.mul_(1e4) for tensor in tensors.values()])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("gone", "transformer.h.1.attn.c_attn.weight is missing"),
        ("shape", r"transformer.h.1.attn.c_attn.weight of .* is \[32, 32\] in its files, and \[32, 96\] by its config"),
        ("codes", "is quantised"),
        ("overflow", "not finite in transformer.h.1.attn.c_attn.weight"),
    ],
)
def test_what_cannot_be_merged_leaves_nothing(how: str, said: str, tmp_path: Path):
    base = save_base(tmp_path / "base")
    adapter_on(base, tmp_path / "adapter", target_modules=["c_attn"])
    _spoil(tmp_path, how)
    there = sorted(path.name for path in tmp_path.iterdir())
    with refused(said), new_folder(tmp_path / "merged") as part:
        write_merged(plan_merge(base, [tmp_path / "adapter"], allow_base_mismatch=True), part)
    assert sorted(path.name for path in tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    "fields", [{"use_dora": True}, {"bias": "all", "target_modules": ["c_attn"]}, {"modules_to_save": ["lm_head"]}]
)
def test_what_is_no_sum_is_merged_alone(fields: dict[str, Any], tmp_path: Path):
    base = save_base(tmp_path / "base")
    adapter_on(base, tmp_path / "a")
    adapter_on(base, tmp_path / "b", **fields)
    assert_refused("b .*low-rank", plan_merge, base, [tmp_path / "a", tmp_path / "b"])
    assert_refused("alone", plan_merge, base, [tmp_path / "b"], [0.5])
    plan_merge(base, [tmp_path / "b"])


def test_an_adapter_of_another_base_is_refused(tmp_path: Path):
    adapter_on(save_base(tmp_path / "base"), tmp_path / "adapter")
    tiny_model("gpt2", 5).save_pretrained(tmp_path / "other")
    assert_refused("another base", plan_merge, str(tmp_path / "other"), [tmp_path / "adapter"])
