"""Recompute every number of the chapter from the shapes of the models.

The models are built on the meta device, which stores shapes without values: nothing is downloaded, and a model of 336
million parameters takes no memory.

    python examples/from_scratch/audit.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from gpt2 import ATTENTION, apply_lora_to_gpt2, count_parameters
from safetensors.torch import save
from transformers import GPT2Config, GPT2LMHeadModel

SMALL = GPT2Config()
"""GPT-2 small: 12 blocks of width 768, a vocabulary of 50,257."""
MEDIUM = GPT2Config(
    vocab_size=32000, n_positions=1024, n_embd=1024, n_layer=24, n_head=16, bos_token_id=1, eos_token_id=2
)
"""rinna/japanese-gpt2-medium: 24 blocks of width 1,024, a vocabulary of 32,000."""
CHAPTERS_TARGETS = ("c_attn", "c_proj")
RANK = 8
SAMPLES, BATCH, ACCUMULATION, EPOCHS = 110_000, 4, 4, 3
BYTES = 4  # of a float32 value
MB, GB, MIB = 1000**2, 1000**3, 1024**2


@dataclass(frozen=True)
class Figure:
    """A number of the chapter, its recomputed value, and how the value is obtained."""

    chapter: str
    recomputed: str
    how: str


def shape_only(config: GPT2Config) -> GPT2LMHeadModel:
    """Build a GPT-2 on the meta device."""
    with torch.device("meta"):
        return GPT2LMHeadModel(config)


def lora_parameters(config: GPT2Config, targets: Sequence[str]) -> int:
    """Count the trainable parameters with rank-8 LoRA on `targets`."""
    return count_parameters(apply_lora_to_gpt2(shape_only(config), RANK, alpha=32, targets=targets))[0]


def factors(in_features: int, out_features: int) -> int:
    """Count the elements of A [rank, in] and B [out, rank]."""
    return RANK * (in_features + out_features)


def chapters_attention(config: GPT2Config) -> int:
    """Count what is trained in the chapter's attention modules: each has four new, unfrozen layers with LoRA."""
    width: int = config.n_embd
    new_layer = width * width + width  # weight and bias
    blocks: int = config.n_layer
    return blocks * 4 * (new_layer + factors(width, width))


def chapters_head(config: GPT2Config) -> int:
    """Count the LoRA parameters on the output head, the only `nn.Linear` of GPT-2."""
    return factors(config.n_embd, config.vocab_size)


def adapter_file(config: GPT2Config, targets: Sequence[str]) -> int:
    """Return the size in bytes of PEFT's adapter file: the values, and a header that names every tensor."""
    model = apply_lora_to_gpt2(shape_only(config), RANK, alpha=32, targets=targets)
    tensors = {
        f"base_model.model.{name.replace('.lora.', '.lora_')}.weight": torch.zeros(p.shape)
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    return len(save(tensors, metadata={"format": "pt"}))


def audit() -> list[Figure]:
    """Return every number in the chapter's order, twice where it has two possible readings."""
    _, small = count_parameters(shape_only(SMALL))
    attention, head = chapters_attention(SMALL), chapters_head(SMALL)
    left = attention + head

    _, medium = count_parameters(shape_only(MEDIUM))
    narrow = lora_parameters(MEDIUM, ATTENTION)
    wide = lora_parameters(MEDIUM, CHAPTERS_TARGETS)
    file = adapter_file(MEDIUM, CHAPTERS_TARGETS)

    step = BATCH * ACCUMULATION
    steps = SAMPLES // step
    return [
        Figure("3,000", f"{100 * 5 + 5 * 500:,}", f"100 x 5 and 5 x 500 instead of 100 x 500 = {100 * 500:,}"),
        Figure("124,439,808", f"{small:,}", "GPT-2 small; the head and the token embedding share one weight"),
        Figure(
            "29,346,440",
            f"{attention:,} + {head:,} = {left:,}",
            "12 x 4 new random layers of 590,592, fully trained, each with LoRA of 12,288; and LoRA on the head",
        ),
        Figure("23.58 %", percent(left / small), f"still trained; the reduction is {percent(1 - left / small)}"),
        Figure("about 340 million", f"{medium:,}", "rinna/japanese-gpt2-medium"),
        Figure("1,179,648", f"{narrow:,}", "LoRA on the attention only: 24 x 8 x (1,024 + 3,072 + 1,024 + 1,024)"),
        Figure("1,179,648", f"{wide:,}", "as configured: c_proj matches mlp.c_proj too, 24 x 8 x (4,096 + 1,024) more"),
        Figure("337,668,096", f"{medium:,} + {narrow:,} = {medium + narrow:,}", "in total, LoRA on the attention only"),
        Figure("337,668,096", f"{medium:,} + {wide:,} = {medium + wide:,}", "in total, as configured"),
        Figure("0.35 %", percent(narrow / (medium + narrow)), "trainable share, LoRA on the attention only"),
        Figure("0.35 %", percent(wide / (medium + wide)), "trainable share, as configured"),
        Figure("about 5 MB", f"{BYTES * narrow / MB:.2f} MB", "float32, LoRA on the attention only"),
        Figure(
            "about 8.3 MB",
            f"{BYTES * wide / MB:.2f} MB",
            f"float32, as configured; the file with its header is {file / MIB:.2f} MiB (1,024 x 1,024 bytes)",
        ),
        Figure("about 1.3 GB", f"{BYTES * medium / GB:.2f} GB", "the base model in float32"),
        Figure(
            "850 steps",
            f"{steps:,} steps",
            f"one epoch of 110,000 samples, 4 x 4 per step; 850 steps would have {SAMPLES / 850:.0f} each, near 128",
        ),
        Figure("2,550 steps", f"{EPOCHS * steps:,} steps", "three epochs"),
    ]


def percent(share: float) -> str:
    """Format a fraction as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


def table(figures: Sequence[Figure]) -> str:
    """Format the figures as aligned columns."""
    rows = [("the chapter", "recomputed", "how"), *((f.chapter, f.recomputed, f.how) for f in figures)]
    chapter, recomputed = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{a:{chapter}}  {b:{recomputed}}  {c}" for a, b, c in rows)


def main() -> None:
    """Print the table."""
    print(table(audit()))


if __name__ == "__main__":
    main()
