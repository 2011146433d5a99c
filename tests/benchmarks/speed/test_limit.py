"""The limit counts exactly the matrix products that a LoRA step needs."""

import pytest
from benchmarks.speed.limit import Product, Timings, products
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import ids, tiny_model
from tsugiki.lora import LoraConfig as OurConfig
from tsugiki.lora import find_targets

ROWS, LENGTH, RANK = 3, 12, 4


def flops(product: Product) -> int:
    return 2 * product.batch * product.m * product.k * product.n


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "gpt_neox", "opt", "falcon"])
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
