"""Compare one copy of a pair's prompt with two, forward and backward: `python -m benchmarks.speed.shared_prompts`.

The model has the shape of SmolLM2 135M and random weights, and an adapter on all linear layers trains. The default is a
third of the layers and of the vocabulary, so that each part has the same share of the time. Both kinds of rows take
turns, and the processor time of one thread is counted, so that other work on the machine disturbs little.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from tsugiki import LoraConfig, graft, trainable_parameters, use_fast_paths
from tsugiki.fast.forward import answer_log_probabilities
from tsugiki.fast.loss import AnswerTokens
from tsugiki.lowbit.quantization import quantize
from tsugiki.model.context import IGNORE_INDEX


def main() -> None:
    """Print the seconds for a pair and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", nargs="+", default=["100:100", "200:200", "300:100", "100:300"], help="prompt:answer"
    )
    parser.add_argument("--row", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--vocabulary", type=int, default=16_384)
    parser.add_argument("--dtype", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = _model(options.layers, options.vocabulary, options.dtype)
    _seconds(model, _row(10, 10, 1, True), 1)  # the first pass takes longer
    for shape in options.pairs:
        prompt, answer = map(int, shape.split(":"))
        counts = options.row // (2 * prompt + 2 * answer), options.row // (prompt + 2 * answer)
        rows = [_row(prompt, answer, count, bool(shared)) for shared, count in enumerate(counts)]
        turns = [[_seconds(model, *one) for one in zip(rows, counts, strict=True)] for _ in range(options.turns)]
        two, one = (statistics.median(column) for column in zip(*turns, strict=True))
        ratios = ", ".join(f"{two / one:.2f}" for two, one in turns)
        print(f"{shape}  two prompts {two:.3f} s, one {one:.3f} s a pair, {two / one:.2f} times ({ratios})", flush=True)


def _model(layers: int, vocabulary: int, dtype: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    if dtype == "int8":
        model = quantize(model, torch.float32, "int8")
    graft(model, LoraConfig(r=8, lora_dropout=0.0, target_modules="all-linear"))
    use_fast_paths(model)
    return model.train()


def _row(prompt: int, answer: int, pairs: int, shared: bool) -> dict[str, Tensor]:
    """Return a row of pairs: prompt, answer, (prompt,) answer."""
    document = torch.arange(prompt + answer)
    positions = torch.cat([document, document[prompt if shared else 0 :]] * pairs)[None]
    ids = torch.randint(10_000, positions.shape, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "labels": torch.where(positions < prompt, IGNORE_INDEX, ids),
        "position_ids": positions,
    }


def _seconds(model: Any, row: dict[str, Tensor], pairs: int) -> float:
    """Return the processor time of a pair: log-probabilities and the gradients of the adapter."""
    start = time.process_time()
    inputs = {name: tensor for name, tensor in row.items() if name != "labels"}
    values = answer_log_probabilities(model, AnswerTokens.find(row["labels"], row["position_ids"]), **inputs)
    weights = torch.linspace(-1, 1, len(values))
    torch.autograd.grad(values @ weights, list(trainable_parameters(model).values()))
    return (time.process_time() - start) / pairs


if __name__ == "__main__":
    main()
