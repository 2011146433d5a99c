"""A merge is held against base and adapter before its folder appears; where it fails, nothing is there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters.folders import edit_weights
from tests.files import contents
from tests.tiny import TEXT, save_grafted, save_tiny, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, disable_adapter, graft, load_adapter, save_adapter
from tsugiki.base import encode, load_model, load_tokenizer
from tsugiki.data import read_records
from tsugiki.io import ProgressDisplay
from tsugiki.model import probe_logits
from tsugiki.training import Merge, MergeReport, evaluate, merge_into_folder, split_windows


def merged(out: Path, base: str, *adapters: Path, **more: Any) -> MergeReport:
    return merge_into_folder(Merge(base, adapters, **more), out, ProgressDisplay())


@pytest.fixture
def base(tmp_path: Path) -> str:
    base = save_tiny(tmp_path / "base")
    for seed, name in enumerate("ab"):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"])
        save_grafted(tmp_path / name, load_model(base), config, seed)
    (tmp_path / "text.txt").write_text(TEXT)
    return base


def in_bf16(base: str) -> str:
    load_model(base, "bf16").save_pretrained(base)
    return base


def test_the_figures_are_those_of_base_adapted_and_merged(base: str, tmp_path: Path):
    report = merged(
        tmp_path / "out",
        in_bf16(base),
        tmp_path / "a",
        allow_base_mismatch=True,
        data=str(tmp_path / "text.txt"),
        characters=600,
    )
    records = list(read_records(str(tmp_path / "text.txt")))
    windows = split_windows(records, [len(record.text) for record in records], 600)
    tokenizer = load_tokenizer(base)
    model = load_model(base, "auto")
    assert model.dtype == torch.bfloat16
    load_adapter(model, tmp_path / "a", allow_base_mismatch=True)
    with disable_adapter(model):
        plain, before = probe_logits(model), evaluate(model, tokenizer, windows)
    adapted, during = probe_logits(model), evaluate(model, tokenizer, windows)
    final = load_model(str(tmp_path / "out"), "auto")
    assert final.dtype == torch.bfloat16
    done, after = probe_logits(final), evaluate(final, tokenizer, windows)
    assert plain is not None and adapted is not None and done is not None  # noqa: PT018
    assert report.probe is not None
    assert report.probe.shift == float((adapted.float() - plain.float()).abs().max())
    assert report.probe.error == float((done.float() - adapted.float()).abs().max())
    assert 0 < report.probe.error < report.probe.shift / 4
    assert report.evaluations is not None
    assert [one.nll for one in report.evaluations] == [before.nll, during.nll, after.nll]
    assert (report.changed, report.tensors) == (6, len(load_file(Path(base, "model.safetensors"))))
    said = json.loads((tmp_path / "out" / "tsugiki.json").read_text())
    assert said["figures"] == report.to_json()
    assert said["figures"]["perplexity"]["merged"] == math.exp(after.nll / after.tokens)
    assert said["base"]["name"] == base
    assert [one["name"] for one in said["provenance"]["sources"]] == ["a"]


def test_several_are_verified_as_their_sum(base: str, tmp_path: Path):
    report = merged(tmp_path / "out", base, tmp_path / "a", tmp_path / "b", weights=[0.5, 2.0])
    assert report.probe is not None
    assert report.probe.error < 1e-5 < report.probe.shift
    weights = [
        one["weight"] for one in json.loads((tmp_path / "out" / "tsugiki.json").read_text())["provenance"]["sources"]
    ]
    assert weights == [0.5, 2.0]


def test_without_a_look_at_the_result_the_model_is_never_loaded(base: str, tmp_path: Path, monkeypatch: Any):
    def fail(*_: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("tsugiki.training.workflows.merge.load_model", fail)
    report = merged(tmp_path / "out", base, tmp_path / "a", verify=False)
    assert report.probe is report.evaluations is None
    with pytest.raises(AssertionError):
        merged(tmp_path / "other", base, tmp_path / "a")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("dtype", "looked_at"), [("float16", "float32"), ("bfloat16", "bfloat16")])
def test_float16_is_looked_at_in_float32_by_a_processor(
    dtype: str, looked_at: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    load_model(base).to(getattr(torch, dtype)).save_pretrained(base)
    seen = []
    monkeypatch.setattr("tsugiki.training.workflows.merge.default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(
        "tsugiki.training.workflows.merge.probe_logits",
        lambda model: seen.append(str(model.dtype)) or probe_logits(model),
    )
    merged(tmp_path / "out", base, tmp_path / "a", allow_base_mismatch=True)
    assert seen == [f"torch.{looked_at}"] * 3
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {getattr(torch, dtype)}


@pytest.mark.parametrize("out", ["base/merged", "base", "a", "text.txt/merged", "base/../base/x"])
def test_a_folder_that_cannot_be_new_is_refused(out: str, base: str, tmp_path: Path):
    before = contents(tmp_path)
    with pytest.raises(TsugikiError, match=r"base|exists|text\.txt"):
        merged(tmp_path / out, base, tmp_path / "a")
    assert contents(tmp_path) == before


def test_a_disk_that_is_full_leaves_nothing(base: str, tmp_path: Path):
    resource = pytest.importorskip("resource")
    before, soft = contents(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, soft[1]))  # a file stops growing in the middle of a tensor
    try:
        with pytest.raises(TsugikiError, match="out: File too large"):
            merged(tmp_path / "out", base, tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_logits_that_are_not_finite_leave_nothing(base: str, tmp_path: Path):
    edit_weights(tmp_path / "a", lambda tensors: [tensor.mul_(1e14) for tensor in tensors.values()])
    before = contents(tmp_path)
    with pytest.raises(TsugikiError, match="not finite"):
        merged(tmp_path / "out", base, tmp_path / "a")
    assert contents(tmp_path) == before


@pytest.fixture
def in_8_bits(tmp_path: Path) -> str:
    """A base as transformers stores "fp8", with an adapter on it; a scale lies in another file than its codes."""
    folder = tmp_path / "fp8"
    tiny_model("llama", hidden_size=64, intermediate_size=64, head_dim=16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for key in [key for key in tensors if "_proj" in key]:
        tensors[key], tensors[f"{key}_scale_inv"] = encode(tensors[key], (32, 32), torch.bfloat16)
    parts = {True: "model-1.safetensors", False: "model-2.safetensors"}
    home = {key: parts["weight_scale_inv" in key] for key in tensors}
    for part in parts.values():
        save_file({key: t for key, t in tensors.items() if home[key] == part}, folder / part, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    config = json.loads((folder / "config.json").read_text())
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    model = load_model(str(folder))
    graft(model, LoraConfig(r=4, lora_alpha=8))
    save_adapter(shake(model), tmp_path / "adapter")
    return str(folder)


def test_a_base_in_8_bits_is_merged_into_when_asked(in_8_bits: str, tmp_path: Path):
    before = contents(tmp_path)
    with pytest.raises(TsugikiError, match=r"14 quantised weights.* lose \d+\.\d% of .*--allow-quantized-base"):
        merged(tmp_path / "out", in_8_bits, tmp_path / "adapter")
    assert contents(tmp_path) == before
    report = merged(tmp_path / "out", in_8_bits, tmp_path / "adapter", allow_quantized_base=True)
    assert report.probe is not None
    assert report.probe.error < report.probe.shift / 4
    model = load_model(in_8_bits)  # transformers decodes it
    plain = {path: p.detach().clone() for path, p in model.named_parameters()}
    load_adapter(model, tmp_path / "adapter")
    final = load_model(str(tmp_path / "out"))
    lost = whole = 0.0
    for path, pair in model._tsugiki.adapters["default"].pairs.items():
        exact = plain[f"{path}.weight"] + pair.delta().detach()
        lost += float((final.get_parameter(f"{path}.weight").detach() - exact).square().sum())
        whole += float(pair.delta().detach().square().sum())
    assert report.rounding == pytest.approx(math.sqrt(lost / whole), rel=1e-3)
    files = [
        {key: t for path in Path(f).glob("*.safetensors") for key, t in load_file(path).items()}
        for f in (in_8_bits, tmp_path / "out")
    ]
    assert {key: (t.dtype, t.shape) for key, t in files[0].items()} == {
        key: (t.dtype, t.shape) for key, t in files[1].items()
    }


@pytest.mark.parametrize(
    "said", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8", "weight_block_size": None}]
)
def test_other_low_bits_are_not_merged_into(said: dict[str, Any], in_8_bits: str, tmp_path: Path):
    config = json.loads(Path(in_8_bits, "config.json").read_text())
    Path(in_8_bits, "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(TsugikiError, match=said["quant_method"]):
        merged(tmp_path / "out", in_8_bits, tmp_path / "adapter", allow_quantized_base=True)
