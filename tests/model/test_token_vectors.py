"""Trained vectors of single tokens, beside a reference that trains the whole embedding and masks its gradient."""

from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.adapters.folders import edit_weights
from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.tiny import ids, in_pairs, logits, relative_error, save_grafted, save_tiny, shake, tiny_model
from tsugiki import LoraConfig, graft, load_adapter, merge, save_adapter, trainable_parameters, ungraft
from tsugiki.base import load_model
from tsugiki.fast import use_fast_paths

TOKENS = [17, 3, 64]
KINDS = ["gpt2", "llama", "gemma3_text"]  # the first and the last share the weight; the last scales its embedding

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def config(**settings: Any) -> LoraConfig:
    return LoraConfig(r=2, trainable_token_indices=TOKENS, **settings)


TEXT = torch.tensor([[5, 17, 3, 17, 64, 8, 3, 1]])


PADDED = torch.tensor([[0, 1, 2, 3, 4]])
"""A row in which the padding token, 0, is read and predicted."""


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model(input_ids=PADDED, labels=PADDED).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


PADDING: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "tokens": ({"trainable_token_indices": [1, 0, 3]}, ["tsugiki.vectors"], ["trainable_tokens_delta.default"]),
    "tokens of the head": (
        {"trainable_token_indices": {"lm_head": [1, 0, 3]}},
        ["vectors"],
        ["trainable_tokens_delta.default"],
    ),
    "grafted": (
        {"target_modules": ["embed_tokens"]},
        ["lora.A", "lora.B"],
        ["embedding_A.default", "embedding_B.default"],
    ),
    "saved": (
        {"modules_to_save": ["embed_tokens"]},
        ["embed_tokens.weight"],
        ["embed_tokens.modules_to_save.default.weight"],
    ),
}


@in_pairs(case=PADDING, tied=[False, True], fast=[False, True])
def test_the_embedding_of_padding_has_pefts_gradient(case: str, tied: bool, fast: bool, tmp_path: Path):
    settings, ours, theirs = PADDING[case]
    settings = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **settings}
    tiny = {"pad_token_id": 0, "tie_word_embeddings": tied}
    reference = peft.get_peft_model(tiny_model("llama", **tiny), peft.LoraConfig(**settings)).train()
    reference.save_pretrained(tmp_path)
    model = load_adapter(tiny_model("llama", **tiny), tmp_path).train()
    if fast:
        use_fast_paths(model)
    expected, found = gradients(reference), gradients(model)
    for our, their in zip(ours, theirs, strict=True):
        (gradient,) = [value for name, value in found.items() if name.endswith(our) and "q_proj" not in name]
        (same,) = [value for name, value in expected.items() if name.endswith(their) and "q_proj" not in name]
        assert relative_error(gradient, same) < 1e-5, our


@pytest.mark.parametrize("kind", KINDS)
def test_the_life_of_trained_vectors(kind: str, tmp_path: Path):
    def outputs(model: Any) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=TEXT).logits
        return found

    start = 0 if kind == "llama" else 1e-6  # a tied head multiplies three rows on their own
    assert_lifecycle(partial(tiny_model, kind), config(), tmp_path, outputs, start=start)
    model = graft(tiny_model(kind), config())
    (vectors,) = [p for name, p in trainable_parameters(model).items() if "lora" not in name]
    assert vectors.shape == (3, 32)
    vectors.data.add_(1.0)
    plain = torch.tensor([[1, 2, 5]])  # other tokens are embedded as before
    difference = (logits(model, plain) - logits(tiny_model(kind), plain)).abs().amax((0, 1))
    assert set(difference.nonzero().flatten().tolist()) == (set() if kind == "llama" else set(TOKENS))


def test_vectors_of_a_head_alone_are_not_those_of_the_embedding_that_shares_its_weight(tmp_path: Path):
    indices = {"lm_head": TOKENS}
    reference = peft.get_peft_model(
        tiny_model("gpt2"), peft.LoraConfig(r=2, target_modules=["c_attn"], trainable_token_indices=indices)
    )
    expected = logits(shake(reference), PADDED[:, 1:4] + 15)
    reference.save_pretrained(tmp_path)
    model = load_adapter(tiny_model("gpt2"), tmp_path)
    assert relative_error(logits(model, PADDED[:, 1:4] + 15), expected) < 1e-5
    assert relative_error(logits(ungraft(merge(model)), PADDED[:, 1:4] + 15), expected) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_a_quantised_head_that_shares_the_embeddings_weight_has_the_vectors_too(kind: str, tmp_path: Path):
    base = save_tiny(tmp_path / "base", kind)
    exact, coarse = load_model(base, "fp32"), load_model(base, "int8")
    before = logits(exact)
    save_grafted(tmp_path / "adapter", exact, config())
    load_adapter(coarse, tmp_path / "adapter")
    assert relative_error(logits(coarse), logits(exact)) < 0.05
    assert relative_error(logits(exact)[..., TOKENS], before[..., TOKENS]) > 0.2
    embedding, head = coarse.get_input_embeddings(), coarse.get_output_embeddings()
    assert embedding.tsugiki.vectors is head.tsugiki.vectors


def test_other_weights_for_an_embedding_do_not_reach_a_quantised_head(tmp_path: Path):
    base = save_tiny(tmp_path / "base", "gpt2")
    exact = load_model(base, "fp32")
    save_grafted(tmp_path / "adapter", exact, LoraConfig(r=2))
    other = 2 * exact.get_input_embeddings().weight.detach()
    edit_weights(
        tmp_path / "adapter", lambda tensors: tensors.update({"base_model.model.transformer.wte.weight": other})
    )
    load_adapter(load_model(base, "fp32"), tmp_path / "adapter")
    with refused("transformer.wte, of which lm_head has a quantised copy"):
        load_adapter(load_model(base, "int8"), tmp_path / "adapter")


def test_a_base_in_16_bits_computes_with_the_rounded_vectors():
    model = tiny_model("gpt2").bfloat16()
    graft(model, config())
    assert next(p for n, p in model.named_parameters() if n.endswith("vectors")).dtype == torch.float32
    assert torch.equal(logits(model, ids()), logits(tiny_model("gpt2").bfloat16(), ids()))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_new_words_are_stored_as_vectors_alone(kind: str, tmp_path: Path):
    def resized() -> Any:
        model = tiny_model(kind)
        torch.manual_seed(0)
        model.resize_token_embeddings(98, mean_resizing=False)
        return model

    model, new, tokens = resized(), [96, 97], torch.tensor([[5, 97, 3, 96]])
    indices = {"wte": new} if kind == "gpt2" else {"embed_tokens": new, "lm_head": new}
    adapted = logits(shake(graft(model, LoraConfig(r=2, trainable_token_indices=indices))), tokens)
    save_adapter(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert all(len(tensor) <= 2 for name, tensor in tensors.items() if "lora" not in name)
    assert relative_error(logits(load_adapter(resized(), tmp_path), tokens), adapted) < 1e-5
    theirs = peft.PeftModel.from_pretrained(resized(), tmp_path).eval()
    assert relative_error(logits(theirs, tokens), adapted) < 1e-5
