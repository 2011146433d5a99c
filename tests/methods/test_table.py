"""The table of methods, and what every method must do: alone, beside others, fast, and on bases of fewer bits."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.runs import assert_resumes, run_config
from tests.tiny import grafted, ids, logits, relative_error, shake, tiny_model
from tsugiki import (
    LoraConfig,
    disable_adapter,
    graft,
    merge,
    remove_adapter,
    set_adapter,
    trainable_parameters,
    ungraft,
    unmerge,
    use_fast_paths,
)
from tsugiki.lowbit import quantize
from tsugiki.methods import METHODS, format_of, formats, methods_of
from tsugiki.training import train

NEEDED = {"select": {"target_parameters": ["bias"]}}
SMALL: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 5},
    "prefix-tuning": {"num_virtual_tokens": 5},
    "p-tuning": {"num_virtual_tokens": 5, "encoder_hidden_size": 12},
    "houlsby": {"reduction_factor": 4},
    "pfeiffer": {"reduction_factor": 4},
    "select": {"target_parameters": r".*\.(h|layers)\.1\..*"},
}
LORA_TARGETS = {"gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "gemma3_text": ["q_proj", "down_proj"]}
START = {"orthogonal": 1e-5, "prompt-tuning": math.inf, "prefix-tuning": math.inf, "p-tuning": math.inf}
"""By how much a method's model may differ from the base before it is trained, where that is not 0."""


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_complete(name: str):
    method = METHODS[name]
    config = method.configure(NEEDED.get(name, {}))
    assert type(config) is method.config
    assert all(getattr(config, setting) == value for setting, value in method.fixed_settings.items())
    if method.trains_adapter:
        assert formats()[format_of(config).peft_type].config is method.config
    assert method.trains_adapter == (name != "full")
    assert method.trains_base_weights == (method.family in ("selective", "full fine-tuning"))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LoraConfig(), ["lora"]),
        (LoraConfig(use_rslora=True, use_dora=True), ["rslora", "dora"]),
        (LoraConfig(init_lora_weights="pissa_niter_4"), ["pissa"]),
        (METHODS["select"].configure({"target_parameters": ["ln_f.bias"]}), ["select"]),
        (object(), []),
    ],
)
def test_methods_of_a_config(config: object, names: list[str]):
    assert methods_of(config) == names


def test_fixed_and_unknown_settings_are_refused_by_name():
    with refused("use_dora is True"):
        METHODS["dora"].check_fixed_settings({"use_dora": False})
    METHODS["dora"].check_fixed_settings({"use_dora": True, "r": 3})
    with refused(r"^r: .*nothing"):
        METHODS["full"].configure({"r": 3})


ADAPTERS = [name for name in METHODS if name not in ("full", "bitfit")]
KINDS = [*LORA_TARGETS]
CASES = [(name, KINDS[i % 3]) for i, name in enumerate(ADAPTERS)] + [("bitfit", "gpt2")]  # the others have no biases
CASES += [("lora", kind) for kind in KINDS if ("lora", kind) not in CASES]


def small_config(name: str, kind: str) -> Any:
    """A config of an adapter method for a tiny model."""
    first, second = LORA_TARGETS[kind]
    lora = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.5, "target_modules": [first, second]}
    lora |= {"rank_pattern": {first: 2}, "alpha_pattern": {second: 5}}
    return METHODS[name].configure(SMALL.get(name, lora if METHODS[name].family == "reparametrised" else {}))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls transformers by its earlier names
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_life_of_an_adapter(name: str, kind: str, tmp_path: Path):
    assert_lifecycle(
        functools.partial(tiny_model, kind),
        small_config(name, kind),
        tmp_path,
        start=START.get(name, 0),
        mergeable=METHODS[name].mergeable,
        readable_by_peft=METHODS[name].readable_by_peft,
    )


@pytest.mark.filterwarnings("ignore:lm_head shares")
@pytest.mark.parametrize(("name", "kind"), {METHODS[name].config: (name, kind) for name, kind in CASES}.values())
def test_generation_in_a_padded_batch_equals_that_of_single_rows(name: str, kind: str):
    model = grafted(tiny_model(kind), small_config(name, kind))
    rows = [ids(1, n, seed=n)[0].clamp(min=1) for n in (3, 7)]
    padded = torch.stack([F.pad(row, (7 - len(row), 0)) for row in rows])
    seen = torch.stack([F.pad(torch.ones_like(row), (7 - len(row), 0)) for row in rows])
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(input_ids=padded, attention_mask=seen, **options)
    for row, generated in zip(rows, together, strict=True):
        tokens = row
        for _ in range(6):  # without a cache
            tokens = torch.cat([tokens, logits(model, tokens[None])[0, -1].argmax()[None]])
        alone = model.generate(input_ids=row[None], attention_mask=torch.ones_like(row)[None], **options)
        assert torch.equal(alone[0], tokens)
        assert torch.equal(generated[7:], tokens[len(row) :])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_adapters_of_every_method_on_one_model(kind: str):
    model = tiny_model(kind)
    base = logits(model)
    lora = {"r": 2, "target_modules": "all-linear", "bias": "all"}
    found: dict[str, torch.Tensor] = {}
    for name in [*ADAPTERS, "bitfit"]:
        family = METHODS[name].family
        graft(model, METHODS[name].configure(SMALL.get(name, lora if family == "reparametrised" else {})), name)
        begun = relative_error(logits(model), base)
        assert begun <= START.get(name, 0), f"{name} begins with the base, whichever adapter is active"
        found[name] = logits(shake(model, seed=len(found)))
    for name in [*found, *reversed(found)]:
        set_adapter(model, name)
        assert torch.equal(logits(model), found[name]), name
        if METHODS[name].mergeable:
            assert relative_error(logits(merge(model)), found[name]) < 1e-4, name
            unmerge(model)
        with disable_adapter(model):
            assert torch.equal(logits(model), base), name
    for name in ("lora", "houlsby"):  # the layers of one, to which another is attached, are unwrapped
        remove_adapter(model, name)
    assert torch.equal(logits(model), found["prompt-tuning"])
    assert torch.equal(logits(ungraft(model)), base)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_fast_paths_compute_the_same(name: str, kind: str):
    config = replace_dropout(small_config(name, kind))
    if isinstance(config, LoraConfig):  # also of a grafted head, whose loss is computed in chunks
        config = dataclasses.replace(config, target_modules=[*LORA_TARGETS[kind], "lm_head"])
    plain, fast = grafted(tiny_model(kind), config), grafted(tiny_model(kind), config)
    use_fast_paths(fast)
    losses = [model(input_ids=ids(), labels=ids()).loss for model in (plain, fast)]
    for loss in losses:
        loss.backward()
    assert relative_error(losses[1], losses[0]) < 1e-5
    trained = trainable_parameters(plain)
    for path, p in trainable_parameters(fast).items():
        assert relative_error(p.grad, trained[path].grad) < 1e-3, path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*ADAPTERS, "bitfit"])
def test_a_16_bit_or_int8_base(name: str):
    config = replace_dropout(small_config(name, "gpt2"))
    few_bits = METHODS[name].family != "selective" and [*METHODS].index(name) % 2 == 0
    exact = grafted(tiny_model(), config)
    model = quantize(tiny_model()) if few_bits else tiny_model().bfloat16()
    base = logits(model)
    torch.manual_seed(0)
    graft(model, config)
    assert name in START or relative_error(logits(model), base) < 1e-9
    trained, wanted = trainable_parameters(model), trainable_parameters(exact)
    assert trained.keys() == wanted.keys()
    assert all(p.dtype == torch.float32 for p in trained.values())
    with torch.no_grad():
        for path, p in trained.items():
            p.copy_(wanted[path])
    assert relative_error(logits(model).float(), logits(exact)) < 0.1
    for each in (model, exact):
        each(input_ids=ids(), labels=ids()).loss.backward()
    for path, p in trained.items():
        assert p.grad.dtype == torch.float32
        assert float(torch.cosine_similarity(p.grad.flatten(), wanted[path].grad.flatten(), dim=0)) > 0.9, path


@pytest.mark.parametrize(
    ("method", "settings"), [("ia3", {}), ("houlsby", {"reduction_factor": 4, "dropout": 0.1}), ("head", {})]
)
def test_a_resumed_run_gives_the_same_bytes(method: str, settings: dict[str, Any], tmp_path: Path):
    record = assert_resumes(train, run_config(tmp_path, method=method, method_config=settings), 3)
    assert record.evaluations[-1].loss < record.evaluations[0].loss


def replace_dropout(config: Any) -> Any:
    """The config without dropout, so that two models compute the same."""
    return dataclasses.replace(config, lora_dropout=0.0) if isinstance(config, LoraConfig) else config
