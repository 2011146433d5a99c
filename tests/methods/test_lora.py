"""Variants of LoRA (DoRA, PiSSA, orthogonal factors, LoRA-FA) on whole models, compared with PEFT."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.errors import refused
from tests.fast.kept import kept_bytes
from tests.files import json_of
from tests.lifecycle import assert_lifecycle
from tests.methods.beside_peft import assert_files_equal, assert_merged_alike, assert_trained_alike
from tests.tiny import logits, relative_error, seeded, shake, tiny_model
from tsugiki import LoraConfig, active_adapter, graft, load_adapter, save_adapter, trainable_parameters
from tsugiki.adapters import load_adapter_weights
from tsugiki.io import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPES = ["gpt2", "llama", "gemma3_text"]
TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "gemma3_text": ["q_proj", "down_proj"]}
EMBEDDING = {"gpt2": "wte", "llama": "embed_tokens", "gemma3_text": "embed_tokens"}


def config_of(name: str, kind: str = "gpt2", **more: Any) -> Any:
    return METHODS[name].configure({"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind], **more})


def peft_model(kind: str, **fields: Any) -> Any:
    settings = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS[kind], "task_type": "CAUSAL_LM", **fields}
    return peft.get_peft_model(tiny_model(kind), peft.LoraConfig(**settings)).eval()


def peft_name(name: str) -> str:
    """Return PEFT's name of one of our parameters."""
    path, _, part = name.partition(".lora.")
    if part == "magnitude":
        return f"{path}.lora_magnitude_vector.weight"
    return f"{path}.lora_embedding_{part}" if path.endswith((".wte", ".embed_tokens")) else f"{path}.lora_{part}.weight"


@pytest.mark.parametrize("kind", SHAPES)
def test_our_dora_starts_and_loads_as_in_peft(kind: str, tmp_path: Path):
    targets = [*TARGETS[kind], EMBEDDING[kind]]
    model = graft(tiny_model(kind), config_of("dora", kind, target_modules=targets))
    started = peft_model(kind, use_dora=True, target_modules=targets).base_model.model
    for path, pair in active_adapter(model).pairs.items():
        magnitude = started.get_submodule(path).lora_magnitude_vector.default.weight
        torch.testing.assert_close(pair.magnitude.detach(), magnitude.detach())
    adapted = logits(shake(model))
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours").eval()
    assert relative_error(logits(theirs), adapted) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    assert_files_equal(tmp_path, 1e-6)


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "mica": {"init_lora_weights": "mica"},  # trains A alone
    "lora-fa": {},  # trains B alone
}


@pytest.mark.parametrize(
    ("variant", "kind"),
    [*(("dora", kind) for kind in SHAPES), ("mica", "llama"), ("mica", "gpt2"), ("lora-fa", "llama")],
)
def test_steps_equal_pefts(variant: str, kind: str, tmp_path: Path):
    targets = [*TARGETS[kind], *([] if variant == "lora-fa" else [EMBEDDING[kind]])]
    theirs = shake(peft_model(kind, target_modules=targets, **VARIANTS[variant]))
    theirs.save_pretrained(tmp_path / "start")
    if variant == "lora-fa":
        tsugiki = {"format": 2, "method_config": {"freeze_A": True}}
        (tmp_path / "start" / "tsugiki.json").write_text(json.dumps(tsugiki))
        for name, p in theirs.named_parameters():
            p.requires_grad_("lora_B" in name)
    ours = load_adapter(tiny_model(kind), tmp_path / "start")
    assert_trained_alike(ours.train(), theirs, tmp_path, peft_name)
    if variant == "lora-fa":
        assert "freeze_A" not in json_of(tmp_path / "ours" / ADAPTER_CONFIG_FILE)
        assert json_of(tmp_path / "ours" / "tsugiki.json")["method_config"] == {"freeze_A": True}
    else:
        again = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours", is_trainable=True)
        trained = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (again, theirs)]
        assert trained[0] == trained[1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dora_with_dropout_equals_pefts(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Both use this one mask instead of drawing their own.
    def same(x: torch.Tensor, p: float = 0.5, *_: Any) -> torch.Tensor:
        generator = seeded(x.shape[-1])
        return x * (torch.rand(x.shape[-1], generator=generator) >= p) / (1 - p)

    theirs = shake(peft_model(kind, use_dora=True, lora_dropout=0.5))
    theirs.save_pretrained(tmp_path / "start")
    ours = load_adapter(tiny_model(kind), tmp_path / "start")
    monkeypatch.setattr("tsugiki.fast.layers.dropout", lambda x, p: same(x, p) if p else x)
    for module in theirs.modules():
        if type(module).__name__ == "Linear" and hasattr(module, "lora_dropout"):
            module.train()
            module.lora_dropout.default.forward = same
    assert_trained_alike(ours.train(), theirs, tmp_path, peft_name)


@pytest.mark.parametrize("kind", SHAPES)
def test_merged_dora_equals_pefts(kind: str, tmp_path: Path):
    theirs = shake(peft_model(kind, use_dora=True))
    theirs.save_pretrained(tmp_path)
    assert_merged_alike(load_adapter(tiny_model(kind), tmp_path), theirs)


# PiSSA compared with PEFT, which changes the base. Its file must be converted to a LoRA of the unchanged base first.


@pytest.mark.parametrize(("kind", "use_rslora"), [("gpt2", False), ("llama", True), ("gemma3_text", False)])
def test_pissa_is_initialised_and_trained_as_in_peft(kind: str, use_rslora: bool, tmp_path: Path):
    torch.manual_seed(5)
    theirs = peft_model(kind, init_lora_weights="pissa", use_rslora=use_rslora)
    ours = graft(tiny_model(kind), config_of("pissa", kind, use_rslora=use_rslora))
    base = logits(tiny_model(kind))
    assert torch.equal(logits(ours), base)
    assert relative_error(logits(theirs), base) < 1e-4
    initial = {peft_name(name): p.detach().clone() for name, p in trainable_parameters(ours).items()}
    theirs.peft_config["default"].init_lora_weights = True  # save the initial factors, for the conversion
    theirs.save_pretrained(tmp_path / "initial")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    for key, tensor in load_file(tmp_path / "initial" / ADAPTER_FILE).items():
        assert relative_error(initial[key.removeprefix("base_model.model.")], tensor) < 1e-5, key
    tolerances: dict[str, Any] = {"lr": 1e-3, "gradient": 1e-3, "stored": 1e-3}
    saving = {"path_initial_model_for_weight_conversion": str(tmp_path / "initial")}
    assert_trained_alike(ours.train(), theirs, tmp_path, peft_name, **tolerances, **saving)
    assert relative_error(logits(ours), logits(theirs)) < 1e-4
    assert relative_error(logits(ours), base) > 1e-3, "two steps move it"
    configs = [peft.LoraConfig.from_pretrained(tmp_path / who) for who in ("ours", "theirs")]
    assert configs[0].r == configs[1].r == 8
    assert configs[0].lora_alpha == pytest.approx(configs[1].lora_alpha)
    assert configs[0].init_lora_weights is True
    again = load_adapter(tiny_model(kind), tmp_path / "theirs")
    assert relative_error(logits(again), logits(ours)) < 1e-4


def test_pissa_by_a_random_projection_is_initialised_as_in_peft():
    torch.manual_seed(0)
    planted = 4 * torch.linalg.qr(torch.randn(32, 4))[0] @ torch.randn(4, 32) + 0.01 * torch.randn(32, 32)
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    for model in (ours, theirs):
        model.model.layers[0].self_attn.q_proj.weight.data = planted.clone()
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "pissa_niter_3"}
    graft(ours, LoraConfig(**settings))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).base_model.model
    pair, layer = (model.model.layers[0].self_attn.q_proj for model in (ours, theirs))
    assert relative_error(pair.lora.scaling * pair.lora.B @ pair.lora.A, layer.get_delta_weight("default")) < 1e-3


def test_a_small_step_of_pissa_is_not_lost_in_16_bits():
    # Computed as written, B A - B0 A0 would be the difference of two products a thousand times larger.
    model = tiny_model("llama").bfloat16()
    exact = tiny_model("llama")
    for one in (model, exact):
        graft(one, config_of("pissa", "llama"))
        generator = seeded(3)
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
    fields = json_of(tmp_path / ADAPTER_CONFIG_FILE)
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
    assert_lifecycle(partial(tiny_model, "llama"), config_of("pissa", "llama", use_dora=True), tmp_path)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_orthogonal_factors_are_drawn_as_in_peft(kind: str, tmp_path: Path):
    torch.manual_seed(5)
    ours = active_adapter(graft(tiny_model(kind), config_of("orthogonal", kind, r=8)))
    theirs = peft_model(kind, r=8, init_lora_weights="orthogonal")
    for path, pair in ours.pairs.items():
        layer = theirs.base_model.model.get_submodule(path)
        for mine, other in ((pair.A, layer.lora_A.default.weight), (pair.B, layer.lora_B.default.weight)):
            assert mine.shape == other.shape
            assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.5)
            assert float(mine.abs().max()) > 1e-2
        assert float((pair.B @ pair.A).abs().max()) < 1e-6
    shake(theirs).save_pretrained(tmp_path)
    assert relative_error(logits(load_adapter(tiny_model(kind), tmp_path)), logits(theirs)) < 1e-5


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


# Errors.


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_pefts_file_for_a_changed_base_is_refused(start: str, tmp_path: Path):
    theirs = peft_model("llama", init_lora_weights=start)
    theirs.save_pretrained(tmp_path)
    with refused(f"init_lora_weights='{start}'"):
        load_adapter(tiny_model("llama"), tmp_path)
