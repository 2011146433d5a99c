"""The limit counts exactly the matrix products that a LoRA step needs."""

import pytest
import torch
from benchmarks.speed.limit import LAYOUTS, Product, Timings, operands, products
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import ids, tiny_model
from tsugiki.lora import LoraConfig as OurConfig
from tsugiki.lora import find_targets

ROWS, LENGTH, RANK = 3, 12, 4


def flops(product: Product) -> int:
    return 2 * product.batch * product.m * product.k * product.n


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma3_text", "gpt_neox", "opt", "falcon", "phi"])
def test_the_operations_are_those_that_torch_counts_in_a_step_of_peft(kind: str):
    model = tiny_model(kind)
    model.set_attn_implementation("eager")
    found = products(model.config, ROWS, LENGTH, RANK)
    targets = sorted(find_targets(model, OurConfig()))
    config = LoraConfig(r=RANK, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    grafted = get_peft_model(model, config)
    tokens = ids(ROWS, LENGTH)
    grafted(
        input_ids=tokens, labels=tokens
    ).loss.backward()  # creates what is computed only once, such as rotary tables
    with FlopCounterMode(display=False) as counter:
        grafted(input_ids=tokens, labels=tokens).loss.backward()
    ours = sum(count * flops(product) for product, count in found.items() if product.group != "causal attention")
    rotary = 2 * ROWS * LENGTH * 16 * 4  # upper bound of the products of constants for rotary angles
    assert 0 <= counter.get_total_flops() - ours <= rotary * (kind not in ("gpt2", "opt"))


def test_causal_attention_counts_blocks_up_to_the_diagonal():
    model = tiny_model("gpt2", n_positions=512)
    found = products(model.config, 1, 300)
    layers, heads, width = 2, 4, 8
    blocks = 128 * 128 + 128 * 256 + 44 * 300
    causal = sum(count * flops(product) for product, count in found.items() if product.group == "causal attention")
    assert causal == 2 * layers * heads * width * blocks * 6
    whole = sum(count * flops(product) for product, count in found.items() if product.group == "attention")
    assert whole == 2 * layers * heads * width * 300 * 300 * 6


@pytest.mark.parametrize(
    ("product", "dtype"),
    [
        (Product("frozen layers", 1100, 24, 40), torch.int8),
        (Product("low rank", 1100, 24, 8), torch.bfloat16),
        (Product("low rank", 8, 1100, 40, sliced="k"), torch.float32),
        (Product("attention", 32, 24, 40, 6, "batch"), torch.bfloat16),
    ],
)
def test_every_layout_is_the_same_product(product: Product, dtype: torch.dtype):
    strides = set()
    for layout in LAYOUTS:
        pairs, threads = operands(product, dtype, layout)
        assert threads == (torch.get_num_threads() if layout.sliced else 1)
        assert sum(2 * a.numel() * b.shape[-1] for a, b in pairs) == flops(product)
        assert all(a.dtype == b.dtype == dtype and a.shape[-1] == b.shape[-2] for a, b in pairs)
        strides.add(pairs[0][1].stride())
    assert len(strides) == 2


def test_each_product_counts_in_its_fastest_allowed_dtype():
    frozen, pair = Product("frozen layers", 4, 4, 4), Product("low rank", 4, 4, 2)
    whole, causal = Product("attention", 4, 4, 4, 2, "batch"), Product("causal attention", 2, 4, 4, 2, "batch")
    timings = Timings({frozen: 2, pair: 3, whole: 1, causal: 1}, ["fp32", "bf16", "int8"])
    assert (pair, "int8") not in timings.seconds
    timings.seconds = {
        (frozen, "fp32"): 8.0, (frozen, "bf16"): 4.0, (frozen, "int8"): 1.0,
        (pair, "fp32"): 1.0, (pair, "bf16"): 2.0,
        (whole, "fp32"): 6.0, (whole, "bf16"): 3.0,
        (causal, "fp32"): 4.0, (causal, "bf16"): 2.0,
    }  # fmt: skip
    limits = timings.limits(tokens=100)
    assert {dtype: 100 / limit["tokens_per_second"] for dtype, limit in limits.items()} == pytest.approx(
        {"fp32": 16 + 3 + 6, "bf16": 8 + 3 + 3, "int8": 2 + 3 + 3}
    )
    assert 100 / limits["int8"]["causal_tokens_per_second"] == pytest.approx(2 + 3 + 2)
