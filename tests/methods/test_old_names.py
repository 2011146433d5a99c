"""Files from before transformers renamed layers or joined experts, against PEFT, transformers and sums by hand."""

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.adapters.folders import verify
from tests.tiny import logits, relative_error
from tests.tiny_types import lively_model, merged, shrink
from tsugiki import LoraConfig, TsugikiError, active_adapter, load_adapter, save_adapter
from tsugiki.adapters import KnownBase
from tsugiki.base import BaseIdentity

pytestmark = pytest.mark.filterwarnings("ignore")

EXPERTS = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}
"""Type of model -> what the three layers of each expert were called: gate, up, down."""


def write_peft(folder: Path, shapes: Mapping[str, tuple[int, int]], targets: Any, **fields: Any) -> dict[str, Tensor]:
    """Write a LoRA of random numbers for layers with these names and shapes (inputs, outputs), as PEFT writes it."""
    noise = torch.Generator().manual_seed(0)
    r = fields.setdefault("r", 2)
    tensors = {}
    for name, (inputs, outputs) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, inputs, generator=noise) * 0.3
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, r, generator=noise) * 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_alpha": 6, **fields, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def old_expert_shapes(model: Any, kind: str, router: bool = False) -> dict[str, tuple[int, int]]:
    """The layers of the experts as they were called in transformers 4, and q_proj."""
    shapes = {}
    for name, module in model.named_modules():
        if name.endswith("q_proj"):
            shapes[name] = (module.in_features, module.out_features)
        if not hasattr(module, "gate_up_proj") or not name.endswith("experts"):
            continue
        block = name.replace(".mlp.", ".block_sparse_moe.") if kind == "mixtral" else name
        count, doubled, width = module.gate_up_proj.shape
        for expert in range(count):
            up, down = (width, doubled // 2), (doubled // 2, width)
            shapes |= zip((f"{block}.{expert}.{part}" for part in EXPERTS[kind]), (up, up, down), strict=True)
        if router:
            shapes[f"{block.removesuffix('experts')}gate"] = (width, count)
    return shapes


def by_hand(kind: str, tensors: Mapping[str, Tensor], scaling: float) -> Any:
    """The base with the updates of the old layers added to its weights."""
    model = lively_model(kind)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for key, A in tensors.items():
            if ".lora_A." not in key:
                continue
            name = key.removeprefix("base_model.model.").partition(".lora_A.")[0].replace("block_sparse_moe", "mlp")
            delta = scaling * tensors[key.replace("lora_A", "lora_B")] @ A
            block, found, rest = name.partition(".experts.")
            if not found:
                weights[f"{name}.weight"] += delta
                continue
            expert, part = rest.split(".")
            number = EXPERTS[kind].index(part)
            if number == 2:
                weights[f"{block}.experts.down_proj"][int(expert)] += delta
            else:
                height = len(delta)
                weights[f"{block}.experts.gate_up_proj"][int(expert), number * height : (number + 1) * height] += delta
    return model


@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("router", [False, True])
def test_experts_one_by_one_become_parameters_as_in_peft(kind: str, router: bool, tmp_path: Path):
    model = lively_model(kind)
    targets = ["q_proj", *EXPERTS[kind], *(["gate"] if router else [])]
    tensors = write_peft(tmp_path / "old", old_expert_shapes(model, kind, router), targets)
    base = logits(model)
    adapted = logits(load_adapter(model, tmp_path / "old"))
    theirs = peft.PeftModel.from_pretrained(lively_model(kind), tmp_path / "old").eval()
    assert relative_error(adapted, logits(theirs)) < 1e-5
    assert relative_error(adapted, logits(by_hand(kind, tensors, 3.0))) < 1e-5
    assert relative_error(adapted, base) > 0.1
    config = active_adapter(model).config
    assert set(config.target_parameters) == {"gate_up_proj", "down_proj", *(["gate.weight"] if router else [])}
    assert config.target_modules == ["q_proj"]
    save_adapter(model, tmp_path / "new")
    again = peft.PeftModel.from_pretrained(lively_model(kind), tmp_path / "new").eval()
    assert relative_error(logits(again), adapted) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"alpha_pattern": {"w3": 12}},
        {"rank_pattern": {"w1": 3}},
        {"target_modules": ["w1", "w2"]},
        {"target_modules": r".*\.experts\.\d+\.w[123]|.*q_proj", "lora_dropout": 0.1},
    ],
)
def test_settings_that_peft_converts_otherwise_or_not_at_all_equal_the_update_by_hand(
    settings: dict[str, Any], tmp_path: Path
):
    """PEFT doubles the alpha of rsLoRA with the rank, and refuses a part of the joined layers."""
    model = lively_model("mixtral")
    fields = {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", *EXPERTS["mixtral"]], **settings}
    shapes = old_expert_shapes(model, "mixtral")
    if fields["target_modules"] == ["w1", "w2"]:
        shapes = {name: shape for name, shape in shapes.items() if name.endswith(("w1", "w2"))}
    tensors = write_peft(tmp_path, shapes, fields["target_modules"], **fields)
    if "rank_pattern" in settings:
        for key, tensor in tensors.items():
            if ".w1.lora_" in key:
                one = tensor[:1] if "lora_A" in key else tensor[:, :1]
                tensors[key] = torch.cat([tensor, one], 0 if "lora_A" in key else 1)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = LoraConfig(**fields)
    for key in tensors:
        name, found, _ = key.removeprefix("base_model.model.").partition(".lora_A")
        tensors[key] = tensors[key] * (config.scaling_of(name) if found else 1)
    dropped = pytest.warns(UserWarning, match=r"lora_dropout.*0\.1") if config.lora_dropout else nullcontext()
    with dropped:  # which experts cannot have
        load_adapter(model, tmp_path)
    assert active_adapter(model).config.lora_dropout == 0
    assert relative_error(logits(model), logits(by_hand("mixtral", tensors, 1.0))) < 1e-5


@pytest.mark.parametrize(
    ("gone", "message"),
    [("experts.2.w3", "expert 2"), ("1.self_attn.q_proj", r"1\.self_attn\.q_proj\.lora_A.*missing")],
)
def test_an_expert_without_factors_and_a_layer_that_is_missing_are_named(gone: str, message: str, tmp_path: Path):
    model = lively_model("mixtral")
    shapes = {name: shape for name, shape in old_expert_shapes(model, "mixtral").items() if not name.endswith(gone)}
    write_peft(tmp_path, shapes, ["q_proj", *EXPERTS["mixtral"]])
    assert re.search(message, verify(tmp_path, KnownBase(model, BaseIdentity()))[0])
    with pytest.raises(TsugikiError, match=message) as error:
        load_adapter(model, tmp_path)
    assert "\n" not in str(error.value)


def vision_language(kind: str) -> Any:
    config = transformers.AutoConfig.for_model(kind)
    sizes = {"image_token_id": 5, "image_token_index": 5, "video_token_id": 6, "pad_token_id": 0}
    settings = merged(shrink(config), {name: value for name, value in sizes.items() if hasattr(config, name)})
    if kind == "qwen2_vl":  # the sections of a head's frequencies
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
        settings = merged(settings, {"text_config": {"rope_parameters": rope}})
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(
        transformers.AutoConfig.for_model(kind, **settings)
    ).eval()


OLD_VISION_LANGUAGE = {"qwen2_vl": "model.", "llava": "language_model.model.", "gemma3": "language_model.model."}
"""Type -> the beginning of the names of the language model's layers before transformers 4.52."""


@pytest.mark.parametrize("kind", OLD_VISION_LANGUAGE)
def test_old_vision_language_adapters_are_read_as_transformers_reads_them(kind: str, tmp_path: Path):
    """However the config names the layers; transformers and PEFT find them by the ends of their names alone."""
    model, now, before = vision_language(kind), "model.language_model.", OLD_VISION_LANGUAGE[kind]
    base = logits(model)
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if name.startswith(now) and name.endswith(("o_proj", "down_proj"))
    }
    shapes = {name.replace(now, before, 1): shape for name, shape in layers.items()}
    write_peft(tmp_path, shapes, ["o_proj", "down_proj"])
    theirs = vision_language(kind)
    theirs.load_adapter(str(tmp_path))
    expected = logits(theirs)
    assert relative_error(expected, base) > 1e-3
    for targets in (["o_proj", "down_proj"], list(shapes), rf"{re.escape(before)}.*\.(o|down)_proj"):
        write_peft(tmp_path, shapes, targets)
        model = load_adapter(vision_language(kind), tmp_path)
        assert relative_error(logits(model), expected) < 1e-5
        assert active_adapter(model).pairs.keys() == layers.keys()
