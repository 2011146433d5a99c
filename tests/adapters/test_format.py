"""PEFT as the oracle: our files in PEFT, PEFT's files here, one training step, merged weights."""

import json
import re
import shutil
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.adapters.folders import edit_config, forget_digests, verify
from tests.adapters.peft_matrix import MODELS, lora_settings
from tests.errors import assert_refused, refused
from tests.files import contents, json_of
from tests.tiny import grafted, ids, logits, relative_error, save_grafted, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, active_adapter, graft, load_adapter, save_adapter, trainable_parameters
from tsugiki.adapters import (
    KnownBase,
    check_can_save,
    plan_merge,
    read_adapter_info,
    read_base,
    write_merged,
)
from tsugiki.base import BaseIdentity
from tsugiki.io import new_folder
from tsugiki.lora import active_names, is_grafted
from tsugiki.methods import BottleneckConfig, PromptEncoderConfig

SHAPES = ["gpt2", "llama", "gemma3_text"]
CASES = [
    *(("gpt2", variant) for variant in ("rslora", "bias lora_only", "layers_to_transform", "saved embedding and head")),
    *(
        ("llama", variant)
        for variant in ("saved embedding and head", "embedding", "embedding and head", "rank_pattern")
    ),
    *(("gemma3_text", variant) for variant in ("embedding", "embedding and head", "a regular expression")),
]
"""Settings of `peft_matrix`: those of the vocabulary with a tied and an untied head, the others with one model each."""

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def settings(kind: str, variant: str) -> dict[str, Any]:
    return {"r": 4, "lora_alpha": 12, **lora_settings(MODELS[kind])[variant]}


def peft_model(kind: str, fields: dict[str, Any]) -> Any:
    return peft.get_peft_model(tiny_model(kind), peft.LoraConfig(task_type="CAUSAL_LM", **fields)).eval()


@pytest.mark.parametrize("kind", SHAPES)
def test_a_training_step_is_pefts(kind: str, tmp_path: Path):
    fields = {"r": 4, "lora_alpha": 12, "target_modules": [*MODELS[kind].targets, MODELS[kind].embedding]}
    theirs = shake(peft_model(kind, fields))
    theirs.save_pretrained(tmp_path / "start")
    ours = load_adapter(tiny_model(kind), tmp_path / "start")
    theirs.eval()  # the same as Tsugiki's training: dropout inside the base off
    ours.train()
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for seed in range(3):
            model(input_ids=ids(seed=seed), labels=ids(seed=seed)).loss.backward()
            optimizer.step()
            if seed < 2:
                optimizer.zero_grad()
    named = (
        (name.replace("base_model.model.", "").replace(".default", ""), p) for name, p in theirs.named_parameters()
    )
    gradients = {name: p.grad for name, p in named if p.requires_grad}
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(ours, tmp_path / "ours")
    for name, p in ours.named_parameters():
        if p.requires_grad:
            path, letter = name.split(".lora.")
            key = next(k for k in (f"{path}.lora_{letter}.weight", f"{path}.lora_embedding_{letter}") if k in gradients)
            assert relative_error(p.grad, gradients[key]) < 1e-5, name
    mine, other = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
    for key, tensor in mine.items():
        # Adam divides by the gradient's size, and so makes much of the rounding of small ones.
        assert relative_error(tensor, other[key]) < 1e-4, key
    assert {key for key in other if key not in mine} <= {key for key in other if key.endswith("base_layer.weight")}


def test_initial_values_are_pefts():
    torch.manual_seed(5)
    theirs = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=64, target_modules=["c_attn", "wte"]))
    torch.manual_seed(5)
    model = tiny_model()
    adapter = active_adapter(graft(model, LoraConfig(r=64, target_modules=["c_attn", "wte"])))
    for path, pair in adapter.pairs.items():
        layer = theirs.base_model.model.get_submodule(path)
        if "wte" in path:
            his_pair = layer.lora_embedding_A.default, layer.lora_embedding_B.default
        else:
            his_pair = layer.lora_A.default.weight, layer.lora_B.default.weight
        for ours, his in zip((pair.A, pair.B), his_pair, strict=True):
            assert ours.shape == his.shape
            assert abs(float(ours.std()) - float(his.std())) < 0.05 * max(float(his.std()), 1e-9)


def test_embeddings_that_did_not_change_are_not_stored(tmp_path: Path):
    model = graft(tiny_model("llama"), LoraConfig(target_modules=["embed_tokens", "q_proj"]))
    save_adapter(model, tmp_path)
    assert all("lora_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))


def saved(tmp_path: Path, **fields: Any) -> Path:
    save_grafted(tmp_path, tiny_model(), LoraConfig(r=4, target_modules=["c_attn"]))
    edit_config(tmp_path, **fields)
    return tmp_path


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"use_dora": True}, "lora_magnitude_vector is missing"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens_delta is missing"),
        ({"target_modules": ["q_proj"]}, "does not fit this model"),
        ({"target_modules": ["c_attn", "c_fc"]}, "is missing"),
        ({"target_modules": ["c_attn"], "layers_to_transform": [0]}, "is not part of the adapter"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_is_as_before(fields: dict[str, Any], said: str, tmp_path: Path):
    folder = saved(tmp_path, **fields)
    model = tiny_model()
    with pytest.raises(TsugikiError) as caught:
        load_adapter(model, folder)
    assert said in str(caught.value)
    assert not is_grafted(model)
    assert not any("lora" in name for name, _ in model.named_modules())


TRILLION = 10**12
CONFIG = "adapter_config.json"
SIZES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "r": (LoraConfig(r=4), CONFIG, {"r": TRILLION}, f"[4, 32], expected [{TRILLION}, 32]"),
    "pissa": (LoraConfig(r=4, init_lora_weights="pissa"), "tsugiki.json", {"r": 5}, "[8, 32], expected [10, 32]"),
    "more than a size can be": (
        PromptEncoderConfig(num_virtual_tokens=4),
        CONFIG,
        {"encoder_hidden_size": TRILLION},
        "encoder_hidden_size",
    ),
    "reduction_factor": (BottleneckConfig(), CONFIG, {"reduction_factor": 1 / 64}, "[2, 32], expected [2048, 32]"),
}


@pytest.mark.parametrize("case", SIZES)
def test_sizes_are_compared_with_the_file_before_memory_is_allocated(case: str, tmp_path: Path):
    config, file, fields, said = SIZES[case]
    save_grafted(tmp_path, tiny_model(), config)
    content = json_of(tmp_path / file)
    if file == "tsugiki.json":
        content["method_config"] |= fields
    else:
        content |= fields
    (tmp_path / file).write_text(json.dumps(content))
    forget_digests(tmp_path)
    assert_refused(re.escape(said), load_adapter, tiny_model(), tmp_path)
    # `verify` reads PiSSA's factors as PEFT does, so that their number before training does not matter to it.
    assert case == "pissa" or verify(tmp_path, KnownBase(tiny_model().to("meta"), BaseIdentity()))


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"r": 32 * 64 + 1}, "is 2049, more than 64 times .*32"), ({"rank_pattern": {"c_attn": TRILLION}}, str(TRILLION))],
)
def test_a_rank_far_above_that_of_the_weight_is_refused(fields: dict[str, Any], said: str):
    assert_refused(said, graft, tiny_model(), LoraConfig(**fields))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_what_is_not_floating_point_is_no_factor(dtype: torch.dtype, tmp_path: Path):
    folder = saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    key = next(iter(tensors))
    save_file({**tensors, key: tensors[key].to(dtype)}, folder / "adapter_model.safetensors")
    with refused(rf"{key} holds numbers of the type {dtype}, expected torch.float32"):
        load_adapter(tiny_model(), folder)


def test_factors_in_8_bits_are_read_as_peft_reads_them(tmp_path: Path):
    folder = saved(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    halves = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in tensors.items()}
    save_file(halves, folder / "adapter_model.safetensors")
    model = load_adapter(tiny_model(), folder)
    theirs = peft.PeftModel.from_pretrained(tiny_model(), folder).eval()
    assert relative_error(logits(model), logits(theirs)) < 1e-5


def test_a_parameter_of_the_base_that_trains_by_hand_is_warned_of(tmp_path: Path):
    model = graft(tiny_model(), LoraConfig(r=2, modules_to_save=["lm_head"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path)
    model.transformer.ln_f.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"transformer\.ln_f\.weight trains as well \(2 such\).*modules_to_save"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("lora_A.", "lora_A.default."),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
    ],
)
def test_names_of_a_wrapped_model_are_refused_with_the_cure(name: str, wrapped: str, tmp_path: Path):
    folder = saved(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    save_file({key.replace(name, wrapped): tensor for key, tensor in load_file(file).items()}, file)
    (folder / "tsugiki.json").unlink()
    assert_refused(r"wrapped model .*save the adapter without the wrapper", load_adapter, tiny_model(), folder)


def test_a_file_that_is_not_the_one_that_was_saved_is_named(tmp_path: Path):
    save_grafted(tmp_path / "a", tiny_model(), LoraConfig(r=4))
    save_grafted(tmp_path / "b", tiny_model(), LoraConfig(r=4, lora_alpha=16), seed=4)
    load_adapter(tiny_model(), tmp_path / "a")
    for file, said in (
        ("adapter_model.safetensors", "adapter_model.safetensors is not the file that was saved with tsugiki.json"),
        ("adapter_config.json", "adapter_config.json and tsugiki.json do not belong together"),
        ("tsugiki.json", "is not the file that was saved|do not belong together"),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / file)
        shutil.copy(tmp_path / "b" / file, tmp_path / file / file)
        model = tiny_model()
        assert_refused(said, load_adapter, model, tmp_path / file)
        assert not is_grafted(model)
        assert len(verify(tmp_path / file)) >= 1


def test_pefts_adapter_in_a_folder_of_ours_is_not_read_with_our_settings(tmp_path: Path):
    save_grafted(tmp_path, tiny_model(), LoraConfig(r=8, lora_alpha=64, init_lora_weights="pissa"))
    theirs = shake(peft_model("gpt2", {"r": 16, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj"]}))
    theirs.save_pretrained(tmp_path)
    assert_refused("remove tsugiki.json", load_adapter, tiny_model(), tmp_path)
    (tmp_path / "tsugiki.json").unlink()
    model = load_adapter(tiny_model(), tmp_path)
    assert relative_error(logits(model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("settings", [{"init_lora_weights": "pissa_niter_99999999"}, {"lora_dropout": 0.5}, {"r": [2]}])
def test_tsugiki_json_has_no_other_settings_than_we_write(settings: dict[str, Any], tmp_path: Path):
    save_grafted(tmp_path, tiny_model(), LoraConfig(r=4, init_lora_weights="pissa"))
    path = tmp_path / "tsugiki.json"
    content = json_of(path)
    path.write_text(json.dumps(content | {"method_config": content["method_config"] | settings, "digests": None}))
    assert_refused("tsugiki.json: method_config", load_adapter, tiny_model(), tmp_path)


def test_an_adapter_that_is_not_finite_is_not_saved(tmp_path: Path):
    model = save_grafted(tmp_path, tiny_model(), LoraConfig(r=4))
    before = contents(tmp_path)
    with torch.no_grad():
        model.transformer.h[1].attn.c_attn.lora.B[3, 1] = torch.nan
    assert_refused(r"h\.1\.attn\.c_attn\.lora_B\.weight is not finite", save_adapter, model, tmp_path)
    assert contents(tmp_path) == before


def test_a_load_that_fails_at_its_end_leaves_the_model_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(model: Any) -> None:
        raise KeyboardInterrupt

    save_grafted(tmp_path, tiny_model(), LoraConfig(r=4))
    plain, adapted = tiny_model(), tiny_model()
    graft(adapted, LoraConfig(r=2), "mine")
    before = logits(shake(adapted))
    monkeypatch.setattr("tsugiki.adapters.pretrained.logit_shift", fail)
    for model in (plain, adapted):
        with pytest.raises(KeyboardInterrupt):
            load_adapter(model, tmp_path, "theirs")
    assert not is_grafted(plain)
    assert all(p.requires_grad for p in plain.parameters())
    assert torch.equal(logits(adapted), before)
    assert active_names(adapted) == ["mine"]


def test_a_base_of_another_name_is_reported_where_its_weights_are_unknown(tmp_path: Path):
    peft_model("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": False}).save_pretrained(tmp_path)
    for name, warned in (("org/this", True), ("models/Base", False), ("", False)):
        edit_config(tmp_path, base_model_name_or_path="org/base")
        model = tiny_model()
        model.name_or_path = name
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            load_adapter(model, tmp_path)
        said = [str(one.message) for one in found if "org/base" in str(one.message)]
        assert bool(said) == warned, name


def test_pefts_copies_of_an_unchanged_vocabulary_are_merged_into_files(tmp_path: Path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    theirs = shake(peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft.LoraConfig()))
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    plan = plan_merge(str(tmp_path / "base"), [tmp_path / "adapter"])
    assert not any("embed" in key or "head" in key for key in plan.changed)
    with new_folder(tmp_path / "merged") as out:
        write_merged(plan, out)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(logits(merged), logits(theirs)) < 1e-5


@pytest.mark.parametrize(("value", "said"), [(0.0, "no effect"), (1e30, "infinite or NaN")])
def test_an_adapter_that_changes_nothing_or_all_is_reported(value: float, said: str, tmp_path: Path):
    model = graft(tiny_model(), LoraConfig(lora_alpha=1e6))
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.fill_(value)
    save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match=said):
        load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    ("name", "fits"),
    [("some/one", False), ("some/one@v2", False), ("some/one@refs/pr/7", True), ("a/folder", True)],
)
def test_the_revision_of_the_base_is_kept_and_compared(name: str, fits: bool, tmp_path: Path):
    model, other = tiny_model(), tiny_model()
    model.name_or_path, other.name_or_path = "some/one@refs/pr/7", name
    save_grafted(tmp_path, model, LoraConfig(r=2))
    fields = json_of(tmp_path / "adapter_config.json")
    assert (fields["base_model_name_or_path"], fields["revision"]) == ("some/one", "refs/pr/7")
    assert read_base(tmp_path).name == "some/one@refs/pr/7"
    (tmp_path / "tsugiki.json").unlink()  # as PEFT writes it
    said = "revision refs/pr/7; pass some/one@refs/pr/7 as the model"
    with nullcontext() if fits else refused(said):
        load_adapter(other, tmp_path)


def test_what_could_not_be_saved_is_refused_before_training():
    """The whole name of one layer is the end of another module's name, so that no list of names selects it alone."""
    model = nn.Sequential(OrderedDict(fc=nn.Linear(4, 4), sub=nn.Sequential(OrderedDict(fc=nn.LayerNorm(4)))))
    graft(model, LoraConfig(r=2, target_modules="all-linear"))
    assert_refused(r"sub\.fc", check_can_save, model)
    other = graft(tiny_model(), LoraConfig(r=2))
    check_can_save(other)


def test_the_weights_of_a_large_adapter_are_in_several_files(tmp_path: Path):
    theirs = shake(peft_model("llama", {"target_modules": ["q_proj", "v_proj"]}))
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    names = sorted(tensors)
    for part, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: tensors[name] for name in chosen}, tmp_path / f"adapter_model-0000{part}-of-00002.safetensors")
    model = load_adapter(tiny_model("llama"), tmp_path)
    assert relative_error(logits(model), logits(theirs)) < 1e-5
    assert read_adapter_info(tmp_path).parameters == sum(tensor.numel() for tensor in tensors.values())
    (tmp_path / "adapter_model-00002-of-00002.safetensors").unlink()
    assert_refused("part 2 is missing", load_adapter, tiny_model("llama"), tmp_path)


@pytest.mark.parametrize(("trained_on", "loaded_into"), [(3, 2), (2, 3)])
def test_an_adapter_for_another_number_of_blocks_is_refused(trained_on: int, loaded_into: int, tmp_path: Path):
    theirs = peft.get_peft_model(
        tiny_model("llama", num_hidden_layers=trained_on), peft.LoraConfig(target_modules=["q_proj"])
    )
    theirs.save_pretrained(tmp_path)
    said = f"last block is model.layers.{trained_on - 1}, and that of this model model.layers.{loaded_into - 1};"
    assert_refused(said, load_adapter, tiny_model("llama", num_hidden_layers=loaded_into), tmp_path)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_an_offloaded_model_computes_and_saves_the_same(where: str, tmp_path: Path):
    model = grafted(tiny_model(), LoraConfig(bias="all", modules_to_save=["lm_head"]))
    before = logits(model)
    save_adapter(model, tmp_path / "before")
    if where == "disk":
        accelerate.disk_offload(model, tmp_path / "weights", execution_device=torch.device("cpu"))
    else:
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for folder in ("unused", "used"):
        save_adapter(model, tmp_path / folder)
        assert contents(tmp_path / folder) == contents(tmp_path / "before")
        assert torch.equal(logits(model), before)


def test_a_layer_that_has_a_wrappers_name_is_no_wrapper(tmp_path: Path):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"module": nn.ModuleDict({"default": nn.Linear(8, 8)})})

    save_adapter(shake(graft(model(), LoraConfig(r=2, target_modules=["default"]))), tmp_path)
    assert active_adapter(load_adapter(model(), tmp_path)).pairs.keys() == {"module.default"}
