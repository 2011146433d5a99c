"""Variants of LoRA (DoRA, PiSSA, orthogonal factors, LoRA-FA) on whole models, compared with PEFT."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.fast.kept import kept_bytes
from tests.tiny import ids, logits, relative_error, shake, tiny_model, train_steps
from tsugiki import (
    LoraConfig,
    TsugikiError,
    active_adapter,
    graft,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    ungraft,
)
from tsugiki.adapters import load_adapter_weights
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.lora import is_grafted
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = ["gpt2", "llama", "gemma3_text"]
TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "gemma3_text": ["q_proj", "down_proj"]}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens", "gemma3_text": "embed_tokens"}
NAMES = ["dora", "lora+", "pissa", "orthogonal", "lora-fa"]


def config_of(name: str, kind: str = "gpt2", **more: Any) -> Any:
    return METHODS[name].configure({"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind], **more})


def peft_model(kind: str, **fields: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind], "task_type": "CAUSAL_LM", **fields}
    return peft.get_peft_model(tiny_model(kind), peft.LoraConfig(**settings)).eval()


def file_name(name: str) -> str:
    """Return the name under which PEFT saves one of its parameters."""
    return (
        name.replace("base_model.model.", "")
        .replace(".default", "")
        .replace("magnitude_vector.weight", "magnitude_vector")
    )


def our_name(name: str) -> str:
    """Return the name in the file of one of our parameters, also for embeddings."""
    path, _, part = name.partition(".lora.")
    form = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}[part]
    embedding = path.endswith(("wte", "embed_tokens")) and part != "magnitude"
    return f"{path}.lora_embedding_{part}" if embedding else f"{path}.{form}"


# DoRA compared with PEFT: files, values, gradients, steps and merged weights.


def dora_fields(kind: str, **more: Any) -> dict[str, Any]:
    return {"use_dora": True, "target_modules": [*TARGETS[kind], EMBEDDING[kind]], **more}


@pytest.mark.parametrize("kind", SHAPES)
def test_our_dora_loads_in_peft_under_its_keys(kind: str, tmp_path: Path):
    model = tiny_model(kind)
    graft(model, config_of("dora", kind, target_modules=[*TARGETS[kind], EMBEDDING[kind]]))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path).eval()
    assert relative_error(logits(theirs), adapted) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    mine, other = load_file(tmp_path / ADAPTER_FILE), load_file(tmp_path / "theirs" / ADAPTER_FILE)
    assert {key: t.shape for key, t in mine.items()} == {
        key: t.shape for key, t in other.items() if "base_layer" not in key
    }


def test_doras_magnitude_is_initialised_with_the_lengths_of_the_rows():
    model = tiny_model("llama")
    adapter = active_adapter(graft(model, config_of("dora", "llama", target_modules=["q_proj", "embed_tokens"])))
    theirs = peft_model("llama", use_dora=True, target_modules=["q_proj", "embed_tokens"])
    for path, pair in adapter.pairs.items():
        wanted = theirs.base_model.model.get_submodule(path).lora_magnitude_vector.default.weight
        torch.testing.assert_close(pair.magnitude.detach(), wanted.detach())


@pytest.mark.parametrize("kind", SHAPES)
def test_a_step_of_dora_equals_pefts(kind: str, tmp_path: Path):
    theirs = shake(peft_model(kind, **dora_fields(kind)))
    theirs.save_pretrained(tmp_path / "start")
    ours = tiny_model(kind)
    load_adapter(ours, tmp_path / "start")
    steps_agree(ours.train(), theirs, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora_with_dropout_equals_pefts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Both use this one mask instead of drawing their own.
    def same(x: torch.Tensor, p: float = 0.5, *_: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(x.shape[-1])
        return x * (torch.rand(x.shape[-1], generator=generator) >= p) / (1 - p)

    theirs = shake(peft_model(kind, use_dora=True, lora_dropout=0.5))
    theirs.save_pretrained(tmp_path / "start")
    ours = tiny_model(kind)
    load_adapter(ours, tmp_path / "start")
    monkeypatch.setattr("tsugiki.fast.layers.dropout", lambda x, p: same(x, p) if p else x)
    for module in theirs.modules():
        if type(module).__name__ == "Linear" and hasattr(module, "lora_dropout"):
            module.train()
            module.lora_dropout.default.forward = same
    steps_agree(ours.train(), theirs, tmp_path)


def steps_agree(ours: Any, theirs: Any, folder: Path) -> None:
    """Check that gradients, two steps of AdamW and the file saved after them are equal in both."""
    for model in (theirs, ours):
        train_steps(model, 2)
    gradients = {file_name(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    mine = {our_name(name): p.grad for name, p in trainable_parameters(ours).items()}
    assert mine.keys() == gradients.keys()
    for name, gradient in mine.items():
        assert relative_error(gradient, gradients[name]) < 2e-5, name
    theirs.save_pretrained(folder / "theirs")
    save_adapter(ours, folder / "ours")
    stored, other = (load_file(folder / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    for key, tensor in stored.items():
        assert relative_error(tensor, other[key]) < 1e-4, key


@pytest.mark.parametrize("kind", SHAPES)
def test_merged_dora_equals_pefts(kind: str, tmp_path: Path):
    theirs = shake(peft_model(kind, use_dora=True))
    theirs.save_pretrained(tmp_path)
    model = tiny_model(kind)
    load_adapter(model, tmp_path)
    ours = dict(ungraft(merge(model)).named_parameters())
    expected = dict(theirs.merge_and_unload().named_parameters())
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        assert relative_error(weight, expected[name]) < 1e-5, name


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradients_with_a_grafted_head(name: str):
    from tsugiki.fast import chunked_loss, find_head, plain_loss

    model = tiny_model("llama")
    graft(model, config_of(name, "llama", target_modules=["lm_head"]))
    shake(model)
    head = find_head(model)
    assert head is not None
    hidden = model.base_model(input_ids=ids()).last_hidden_state
    trained = trainable_parameters(model)
    found = []
    for loss_of in (chunked_loss, plain_loss):
        loss = loss_of(hidden, head, ids())
        found.append([loss, *torch.autograd.grad(loss, list(trained.values()))])
    for quick, plain, what in zip(*found, ["loss", *trained], strict=True):
        assert relative_error(quick, plain) < 1e-5, what


# PiSSA compared with PEFT, which changes the base. Its file must be converted to a LoRA of the unchanged base first.


def pissa_pair(kind: str, how: str, **more: Any) -> tuple[Any, Any]:
    """Return our model and PEFT's, initialised on the same base."""
    torch.manual_seed(5)
    theirs = peft_model(kind, init_lora_weights=how, **more)
    torch.manual_seed(5)
    ours = tiny_model(kind)
    torch.manual_seed(5)
    graft(ours, LoraConfig(r=4, lora_alpha=12, target_modules=TARGETS[kind], init_lora_weights=how, **more))
    return ours, theirs


@pytest.mark.parametrize(("kind", "use_rslora"), [("gpt2", False), ("llama", True), ("gemma3_text", False)])
def test_pissa_is_initialised_and_trained_as_in_peft(kind: str, use_rslora: bool, tmp_path: Path):
    ours, theirs = pissa_pair(kind, "pissa", use_rslora=use_rslora)
    base = logits(tiny_model(kind))
    assert torch.equal(logits(ours), base)
    assert relative_error(logits(theirs), base) < 1e-4
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            path, _, part = file_name(name).partition(".lora_")
            mine = getattr(ours.get_submodule(path).lora, part[0])
            assert relative_error(mine, p) < 1e-5, name
    theirs.peft_config["default"].init_lora_weights = True  # save the initial factors, for the conversion
    theirs.save_pretrained(tmp_path / "initial")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    for model in (theirs, ours.train()):
        train_steps(model, 2, lr=1e-3)
    gradients = {file_name(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    for name, p in trainable_parameters(ours).items():
        assert relative_error(p.grad, gradients[our_name(name)]) < 1e-3, name
    assert relative_error(logits(ours), logits(theirs)) < 1e-4
    assert relative_error(logits(ours), base) > 1e-3, "two steps move it"

    theirs.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    save_adapter(ours, tmp_path / "ours")
    mine, other = (load_file(tmp_path / who / ADAPTER_FILE) for who in ("ours", "theirs"))
    assert mine.keys() == other.keys()
    for key, tensor in mine.items():
        assert relative_error(tensor, other[key]) < 1e-3, key
    configs = [peft.LoraConfig.from_pretrained(tmp_path / who) for who in ("ours", "theirs")]
    assert configs[0].r == configs[1].r == 8
    assert configs[0].lora_alpha == pytest.approx(configs[1].lora_alpha)
    assert configs[0].init_lora_weights is True
    again = tiny_model(kind)
    load_adapter(again, tmp_path / "theirs")
    assert relative_error(logits(again), logits(ours)) < 1e-4


def test_pissa_by_a_random_projection_is_initialised_as_in_peft():
    torch.manual_seed(0)
    planted = 4 * torch.linalg.qr(torch.randn(32, 4))[0] @ torch.randn(4, 32) + 0.01 * torch.randn(32, 32)
    models = [tiny_model("llama"), tiny_model("llama"), tiny_model("llama")]
    for model in models:
        model.model.layers[0].self_attn.q_proj.weight.data = planted.clone()
    base = logits(models[0])
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj"]}
    quick, exact = (
        active_adapter(graft(model, LoraConfig(**settings, init_lora_weights=how))).pairs[
            "model.layers.0.self_attn.q_proj"
        ]
        for model, how in zip(models, ["pissa_niter_3", "pissa"], strict=False)
    )
    theirs = peft.get_peft_model(models[2], peft.LoraConfig(**settings, init_lora_weights="pissa_niter_3"))
    layer = theirs.base_model.model.model.layers[0].self_attn.q_proj
    assert relative_error(quick.scaling * quick.B @ quick.A, layer.get_delta_weight("default")) < 1e-3
    assert relative_error(quick.B @ quick.A, exact.B @ exact.A) < 1e-3
    assert torch.equal(logits(models[0]), base)


def test_a_small_step_of_pissa_is_not_lost_in_16_bits():
    # Computed as written, B A - B0 A0 would be the difference of two products a thousand times larger.
    model = tiny_model("llama").bfloat16()
    exact = tiny_model("llama")
    for one in (model, exact):
        graft(one, config_of("pissa", "llama"))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, p in sorted(trainable_parameters(one).items()):
                p.add_(torch.randn(p.shape, generator=generator) * 2e-4)
    layers = [one.model.layers[0].self_attn.q_proj for one in (model, exact)]
    x = torch.randn(5, 32)
    with torch.no_grad():
        A, B = (t.bfloat16() for t in layers[0].lora.factors())
        change = (x.bfloat16() @ A.T @ B.T).float()
        wanted = x @ layers[1].lora.delta().T / layers[1].lora.scaling
    assert relative_error(change, wanted) < 0.05


def test_pissa_is_loaded_bit_identical_from_a_file_that_every_peft_reads(tmp_path: Path):
    model = tiny_model()
    adapter = active_adapter(graft(model, config_of("pissa")))
    shake(model)
    save_adapter(model, tmp_path)
    fields = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert (fields["r"], fields["lora_alpha"], fields["init_lora_weights"], fields["use_dora"]) == (8, 24, True, False)
    other = tiny_model()
    torch.manual_seed(9)
    refilled = active_adapter(graft(other, config_of("pissa")))
    shake(other, seed=8)
    load_adapter_weights(other, tmp_path)
    for path, pair in adapter.pairs.items():
        for name in ("A", "B", "A0", "B0"):
            assert torch.equal(getattr(pair, name), getattr(refilled.pairs[path], name)), (path, name)
    save_adapter(other, tmp_path / "again")
    for file in (ADAPTER_FILE, ADAPTER_CONFIG_FILE, "tsugiki.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_without_tsugiki_json_pissa_is_a_lora_of_twice_the_rank(tmp_path: Path):
    model = tiny_model()
    graft(model, config_of("pissa", use_rslora=True, rank_pattern={"c_attn": 3}))
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    (tmp_path / "tsugiki.json").unlink()
    plain = tiny_model()
    adapter = active_adapter(load_adapter(plain, tmp_path))
    assert relative_error(logits(plain), adapted) < 1e-5
    assert {pair.A.shape[0] for pair in adapter.pairs.values()} == {6, 8}
    assert all(pair.A0 is None for pair in adapter.pairs.values())


def test_dora_and_pissa_together(tmp_path: Path):
    model = tiny_model("llama")
    base = logits(model)
    graft(model, config_of("pissa", "llama", use_dora=True))
    assert torch.equal(logits(model), base)
    adapted = logits(shake(model))
    save_adapter(model, tmp_path)
    again = tiny_model("llama")
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), adapted)
    theirs = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
    assert relative_error(logits(theirs), adapted) < 1e-5
    assert relative_error(logits(merge(model)), adapted) < 1e-5


# Orthogonal factors.


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_orthogonal_factors_are_drawn_as_in_peft(kind: str):
    torch.manual_seed(5)
    ours = active_adapter(graft(tiny_model(kind), config_of("orthogonal", kind, r=8)))
    theirs = peft_model(kind, r=8, init_lora_weights="orthogonal")
    for path, pair in ours.pairs.items():
        layer = theirs.base_model.model.get_submodule(path)
        for mine, other in ((pair.A, layer.lora_A.default.weight), (pair.B, layer.lora_B.default.weight)):
            assert mine.shape == other.shape
            assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.5)
        assert float((pair.B @ pair.A).abs().max()) < 1e-6
        assert float(pair.A.abs().max()) > 1e-2
        assert float(pair.B.abs().max()) > 1e-2


def test_pefts_orthogonal_factors_load_here(tmp_path: Path):
    theirs = shake(peft_model("llama", init_lora_weights="orthogonal"))
    theirs.save_pretrained(tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    assert relative_error(logits(model), logits(theirs)) < 1e-5


# LoRA-FA.


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_lora_fa_layer_keeps_no_input(p: float):
    model = nn.Sequential(nn.Linear(24, 40))
    x = torch.randn(64, 24)
    sizes = {}
    for name in ("lora", "lora-fa"):
        graft(model, METHODS[name].configure({"r": 3, "target_modules": ["0"], "lora_dropout": p}), name)
        sizes[name] = kept_bytes(lambda: model.train()(x), model.parameters())
    assert sizes["lora-fa"] == 64 * 3 * 4, "low alone"
    assert sizes["lora"] == 64 * 3 * 4 + 64 * 24 * (5 if p else 4), "x, and a byte for each element of the mask"


def test_a_step_of_lora_fa_is_loras_without_the_step_of_a(tmp_path: Path):
    theirs = shake(peft_model("llama"))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tsugiki.json").write_text(json.dumps({"format": 2, "method_config": {"freeze_A": True}}))
    ours = tiny_model("llama")
    load_adapter(ours, tmp_path)
    for name, p in theirs.named_parameters():
        p.requires_grad_("lora_B" in name)
    steps_agree(ours, theirs, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_mica_trains_a_alone_as_in_peft(kind: str, tmp_path: Path):
    targets = [*TARGETS[kind], EMBEDDING[kind]]
    theirs = shake(peft_model(kind, init_lora_weights="mica", target_modules=targets))
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(tiny_model(kind), tmp_path)
    assert not [name for name in trainable_parameters(ours) if name.endswith(".B")]
    steps_agree(ours.train(), theirs, tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours", is_trainable=True)
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        name for name, p in theirs.named_parameters() if p.requires_grad
    }


def test_a_new_adapter_cannot_be_mica():
    model = tiny_model()
    with pytest.raises(TsugikiError, match="mica.*PEFT"):
        graft(model, LoraConfig(init_lora_weights="mica"))
    assert not is_grafted(model)


def test_lora_fa_is_saved_as_a_lora(tmp_path: Path):
    model = tiny_model()
    graft(model, config_of("lora-fa"))
    save_adapter(shake(model), tmp_path)
    fields = json.loads((tmp_path / ADAPTER_CONFIG_FILE).read_text())
    assert "freeze_A" not in fields
    assert json.loads((tmp_path / "tsugiki.json").read_text())["method_config"] == {"freeze_A": True}


# Errors.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"init_lora_weights": "pizza"},
            "init_lora_weights is 'pizza'",
        ),
        ({"init_lora_weights": "pissa_niter_"}, "init_lora_weights is 'pissa_niter_'"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "even ranks, and one is 3"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"a": 5}}, "even ranks, and one is 5"),
    ],
)
def test_invalid_settings_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(TsugikiError) as caught:
        LoraConfig(**fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            LoraConfig(init_lora_weights="pissa", target_modules=["wte"]),
            "'pissa' .*linear layers.* transformer.wte.*Embedding",
        ),
        (
            LoraConfig(init_lora_weights="orthogonal", target_modules=["wte"]),
            "'orthogonal' .*linear layers.* transformer.wte.*Embedding",
        ),
        (
            LoraConfig(init_lora_weights="pissa", r=33, target_modules=["attn.c_attn"]),
            "transformer.h.0.attn.c_attn .*32 .*33",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(config: LoraConfig, said: str):
    model = tiny_model()
    with pytest.raises(TsugikiError, match=said):
        graft(model, config)
    assert not is_grafted(model)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_pefts_file_for_a_changed_base_is_refused(start: str, tmp_path: Path):
    theirs = peft_model("llama", init_lora_weights=start)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(TsugikiError, match=f"init_lora_weights='{start}'"):
        load_adapter(tiny_model("llama"), tmp_path)
