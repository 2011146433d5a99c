"""Bases in every precision and format are served: tokens are those of `generate`."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generation.test_engine import ADAPTERS, Client, alone, prompts, serving
from tests.tiny import save_tiny, shake
from tsugiki import LoraConfig, graft
from tsugiki.base import load_model

BLOCK = {"hidden_size": 64, "intermediate_size": 128}  # what quantised blocks of weights need


def load(kind: str, folder: Path) -> Any:
    """A tiny model, loaded as a user would."""
    if kind == "gguf":
        pytest.importorskip("gguf")
        from tests.base.gguf.files import Kind, tiny_base, write_gguf

        base = tiny_base("llama", **BLOCK)
        return load_model(str(write_gguf(folder / "tiny.gguf", base, Kind.Q8_0)), "auto")
    return load_model(save_tiny(folder / "base", "llama", vocab_size=257, **BLOCK), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4", "gguf"])
def test_greedy_tokens_are_those_of_generate(kind: str, tmp_path: Path):
    model = load(kind, tmp_path)
    for seed, name in enumerate(ADAPTERS[:2], 2):  # with these seeds no two tokens are nearly as likely
        graft(model, LoraConfig(r=2, lora_alpha=64, target_modules="all-linear"), name)
        shake(model, seed)
    vocabulary = model.config.vocab_size
    given = [
        ([token % vocabulary for token in prompt], adapter, 6)
        for prompt, adapter in zip(prompts([5, 12, 20]), ["a", None, "b"], strict=True)
    ]
    expected = [alone(model.eval(), *one) for one in given]
    with serving(model) as engine:
        for one, tokens in zip(given, expected, strict=True):
            client = Client(*one)
            engine.submit([client.request])
            assert client.tokens() == tokens
        clients = [Client(*one, logprobs=0) for one in given]  # together: equal up to rounding
        engine.submit([client.request for client in clients])
        first = [client.all()[0].token for client in clients]  # type: ignore[union-attr]
        logprobs = [engine.call(lambda one=one: first_logprobs(model, *one[:2])).result() for one in given]
    for token, of_row in zip(first, logprobs, strict=True):
        assert token.logprob == pytest.approx(float(of_row[token.token]), abs=0.05)
        assert token.logprob == pytest.approx(float(of_row.max()), abs=0.05)


@torch.no_grad()
def first_logprobs(model: Any, prompt: list[int], adapter: str | None) -> torch.Tensor:
    from tsugiki import disable_adapter, mixed_batch

    with mixed_batch(model, [adapter]) if adapter else disable_adapter(model):
        return torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].float(), -1)
