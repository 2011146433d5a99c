"""What a step keeps for its backward pass on an accelerator is what the guide to scaling counts."""

import pytest
import torch
from benchmarks.scaling_table import Decoder
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.devices.pretend import NAME, PretendedDevice, on_host
from tsugiki import LoraConfig, graft, use_fast_paths

TOKENS, RANK = 64, 4


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_of_a_block(dropout: float, device: PretendedDevice, monkeypatch: pytest.MonkeyPatch):
    decoder = Decoder("tiny", layers=2, width=128, key_width=32, inner=352, vocabulary=64)
    config = LlamaConfig(
        num_hidden_layers=decoder.layers,
        hidden_size=decoder.width,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=decoder.inner,
        vocab_size=decoder.vocabulary,
    )
    model = LlamaForCausalLM(config).bfloat16().to(NAME).train()
    graft(model, LoraConfig(r=RANK, lora_dropout=dropout, target_modules="all-linear"))
    use_fast_paths(model)
    seen = {on_host(weight).untyped_storage().data_ptr() for weight in model.parameters()}
    kept: list[Tensor] = []  # so that no storage is used again
    size, in_attention = 0, False

    def pack(tensor: Tensor) -> Tensor:
        nonlocal size
        storage = on_host(tensor).untyped_storage()
        kept.append(on_host(tensor))
        if storage.data_ptr() not in seen and not in_attention:
            size += storage.nbytes()
        seen.add(storage.data_ptr())
        return tensor

    def attention(*arguments: object, **options: object) -> Tensor:
        nonlocal in_attention
        in_attention = True  # it is computed in parts here, which a fused kernel does not keep
        try:
            return original(*arguments, **options)
        finally:
            in_attention = False

    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    ids = torch.zeros(1, TOKENS, dtype=torch.long).to(NAME)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.base_model(input_ids=ids, use_cache=False)
    fused = decoder.layers * 2 * (2 * decoder.width + 2 * decoder.key_width)
    small = decoder.layers * (7 * RANK * 2 + 2 * 4)  # the low-rank products and the norms' scales
    rotary = 2 * 32 * 2  # cos and sin, for all layers
    assert size / TOKENS == decoder.activations(dropout > 0) - fused + small + rotary
