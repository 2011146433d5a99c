"""Gradients with bitsandbytes on a processor, before and after an evaluation.

A Llama of four layers with random weights is loaded in bitsandbytes' NF4, PEFT puts LoRA on all linear layers, and the
gradients of one batch are computed twice: before and after one forward pass in evaluation mode. Printed are the loss of
both passes, and for each layer the cosine between its gradients (1 if they are the same) and the ratio of their norms.
Run `python -m benchmarks.quality.bitsandbytes_gradients`; it takes some seconds.
"""

import argparse
import tempfile
from importlib.metadata import version

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

_FAST = "support_avx512bf16_for_cpu"
"""The attribute of a `Linear4bit` that lets evaluations repack its weight."""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-evaluation", action="store_true", help="the control: nothing between the two passes")
    parser.add_argument("--slow-path", action="store_true", help="switch the packed path of evaluations off")
    options = parser.parse_args()
    model = _model()
    if options.slow_path:
        for module in model.modules():
            if hasattr(module, _FAST):
                setattr(module, _FAST, False)
    tokens = torch.randint(0, 512, (2, 64), generator=torch.Generator().manual_seed(0))
    loss_before, before = _gradients(model, tokens)
    if not options.no_evaluation:
        model.eval()
        with torch.no_grad():
            model(input_ids=tokens)
        model.train()
    loss_after, after = _gradients(model, tokens)
    print(f"bitsandbytes {version('bitsandbytes')}, torch {torch.__version__}, PEFT {version('peft')}")
    print(f"loss before {loss_before:.4f}, after {loss_after:.4f}")
    print("| layer | cosine | norm after / before |")
    print("| ---: | ---: | ---: |")
    for layer in range(4):
        one, other = (
            torch.cat([g.flatten() for name, g in found.items() if f"layers.{layer}." in name])
            for found in (before, after)
        )
        print(f"| {layer} | {torch.cosine_similarity(one, other, dim=0):.4f} | {other.norm() / one.norm():.4f} |")


def _model() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
    )
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=settings, dtype=torch.bfloat16, device_map="cpu"
        )
    adapted: torch.nn.Module = get_peft_model(
        model, LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    )
    return adapted.train()


def _gradients(model: torch.nn.Module, tokens: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Return the loss of a batch, and the gradients of all parameters that train."""
    model.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}


if __name__ == "__main__":
    main()
