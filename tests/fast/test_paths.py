"""The fast paths of whole models, which must not change results."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from tests.tiny import CONFIGS, DIFFERENT, ids, logits, relative_error, seeded, shake, store_of, summed_loss, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import LoraConfig, graft, merge
from tsugiki.data import Collator, pack
from tsugiki.fast import NAME, attention, detect_document_masking, paths, use_fast_paths, use_plain_paths
from tsugiki.methods import METHODS
from tsugiki.model import disable_dropout

CAPPED = ("gemma2",)
"""Architectures with capped scores, for which the plain definition is used."""


LONG_PROMPT = METHODS["prompt-tuning"].configure({"num_virtual_tokens": 32})


def model_of(kind: str, **settings: Any) -> Any:
    """A model for rows of 256 tokens, in float64, without dropout."""
    longer = {name: 256 for name in ("max_position_embeddings", "n_positions") if name in CONFIGS[kind]}
    model = tiny_model(kind, **{**longer, **settings}).double()
    disable_dropout(model)
    return model


def has_own_attention(model: Any) -> bool:
    """Whether an architecture computes attention itself, and takes no other implementation."""
    return not hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


def batch(model: Any) -> dict[str, Tensor]:
    """Two rows of 150 tokens with several documents each, longer and shorter than a block of queries."""
    generator = seeded(5)
    records = [torch.randint(1, 96, (n,), generator=generator).tolist() for n in (9, 140, 30, 65, 14, 20, 7)]
    isolation = detect_document_masking(model)
    blocks = pack(store_of(records), np.arange(7), 150, pad=0, share_rows=isolation != "separate_rows")
    return Collator(isolation, model.dtype)([blocks[row] for row in range(2)])


def results(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits and the gradient of every parameter that trains."""
    model.zero_grad()
    out = model(**{name: tensor for name, tensor in inputs.items() if name != "labels"}, use_cache=False)
    summed_loss(out.logits, inputs["labels"]).backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    return {"logits": out.logits.detach(), **trained}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Some architectures compute some steps in float32. A bias of the keys does not change the softmax.
        allowed = 1e-5 * float(tensor.abs().max()) + 1e-12
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=allowed, msg=name)


@pytest.mark.parametrize(("kind", "grafted"), [(kind, kind in DIFFERENT) for kind in CONFIGS] + [("llama", False)])
def test_logits_gradients_and_document_masking_do_not_change(kind: str, grafted: bool, blocks: list[torch.Size]):
    model = model_of(kind)
    before, isolation, inputs = model.config._attn_implementation, detect_document_masking(model), batch(model)
    if grafted:
        shake(graft(model, LoraConfig(r=3)))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = results(model, inputs)
    assert all(".lora." in name for name in wanted if name != "logits") == grafted

    for _ in range(2):  # applying twice equals once
        use_fast_paths(model)
    assert model.config._attn_implementation == (before if has_own_attention(model) else NAME)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    blocks.clear()
    assert_equal(results(model, inputs), wanted)
    assert len(blocks) == (0 if has_own_attention(model) or kind in CAPPED else 2), "one a layer"
    assert detect_document_masking(model) == isolation

    use_plain_paths(model)
    assert model.config._attn_implementation == before
    blocks.clear()
    for name, tensor in results(model, inputs).items():
        assert torch.equal(tensor, wanted[name]), name
    assert not blocks


def test_in_half_precision_the_error_is_not_larger(blocks: list[torch.Size]):
    model = model_of("llama")
    short, inputs = copy.deepcopy(model).bfloat16(), batch(model)
    exact, plain = results(model, inputs), results(short, inputs)
    use_fast_paths(short)
    blocks.clear()
    found = results(short, inputs)
    assert len(blocks) == 2
    for name, tensor in exact.items():
        assert relative_error(found[name], tensor) < 2e-3 + 2 * relative_error(plain[name], tensor), name


@pytest.mark.parametrize("left_out", ["attention", "modules", "loss"])
def test_each_can_be_left_out(left_out: str):
    model = model_of("llama")
    before = model.config._attn_implementation
    use_fast_paths(model, **{left_out: False})
    used = {
        "attention": model.config._attn_implementation == NAME,
        "modules": any("forward" in vars(module) for module in model.modules() if module is not model),
        "loss": "forward" in vars(model),
    }
    assert used == {name: name != left_out for name in used}
    use_plain_paths(model)
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(module) for module in model.modules())


def _wrong(*given: Any, **rest: Any) -> tuple[Tensor, None]:
    return attention.attention_forward(*given, **{**rest, "scaling": 0.1})


def _failing(*_: Any, **__: Any) -> tuple[Tensor, None]:
    raise RuntimeError("no such attention")


@pytest.mark.parametrize("forward", [_wrong, _failing])
def test_an_attention_with_other_results_is_not_used(forward: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(paths, "register", lambda: AttentionInterface.register(NAME, forward))
    model = model_of("llama")
    before, wanted = model.config._attn_implementation, logits(model)
    attention.register()
    try:
        use_fast_paths(model, modules=False, loss=False)
    finally:
        attention.register()
    assert model.config._attn_implementation == before
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_generation_from_padded_prompts_does_not_change(kind: str):
    """The prompts are padded on the left, and later steps use the cache."""
    model, prompts = model_of(kind), ids(2, 80)
    seen = torch.ones_like(prompts)
    seen[0, :30] = 0
    given: dict[str, Any] = {"attention_mask": seen, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompts, **given)
    use_fast_paths(model)
    assert torch.equal(model.generate(prompts, **given), expected)
    assert expected.shape == (2, 86)


@pytest.mark.parametrize("prepare", [lambda m: merge(shake(graft(m, LoraConfig()))), lambda m: graft(m, LONG_PROMPT)])
def test_with_a_merged_adapter_and_with_a_long_soft_prompt(prepare: Any):
    model = prepare(tiny_model())  # of a context of 64 tokens
    use_fast_paths(model)
    assert model.config._attn_implementation == NAME


def test_of_an_encoder_decoder_model_modules_are_replaced_alone():
    model = tiny_of("t5", "seq2seq")
    inputs = {"input_ids": ids(2, 9), "decoder_input_ids": ids(2, 7, seed=2), "labels": ids(2, 7, seed=3)}
    with torch.no_grad():
        plain = model(**inputs).loss
        use_fast_paths(model)
        assert model.config._attn_implementation != NAME
        assert relative_error(model(**inputs).loss, plain) < 1e-6
        use_plain_paths(model)
        assert torch.equal(model(**inputs).loss, plain)


@pytest.mark.slow
def test_a_compiler_uses_the_models_own_forward():
    model = shake(graft(tiny_model("llama"), LoraConfig(r=2)))
    given: dict[str, Any] = {"input_ids": ids(), "labels": ids()}
    plain, seen = model(**given).loss, list[str]()

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    use_fast_paths(model, attention=False)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend=look)(**given).loss, plain)
    assert any("rsqrt" in target for target in seen)
    assert not any("autograd_function" in target for target in seen)
