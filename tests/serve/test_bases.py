"""Bases in every precision and format are served: each token is the likeliest one by the model itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generation.test_engine import ADAPTERS, Client, prompts, serving
from tests.tiny import save_tiny, shake
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch
from tsugiki.base import load_model
from tsugiki.generation import Output

BLOCK = {"hidden_size": 64, "intermediate_size": 128}  # what quantised blocks of weights need
ROUNDING = 0.3  # nats; a token at random is some nats below the likeliest one


def load(kind: str, folder: Path) -> Any:
    """A tiny model, loaded as a user would."""
    if kind == "gguf":
        from tests.base.gguf.files import Kind, tiny_base, write_gguf

        base = tiny_base("llama", initializer_range=0.2, **BLOCK)
        return load_model(str(write_gguf(folder / "tiny.gguf", base, Kind.Q8_0)), "auto")
    return load_model(save_tiny(folder / "base", "llama", vocab_size=257, initializer_range=0.2, **BLOCK), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4", "gguf"])
def test_greedy_tokens_are_the_likeliest_ones(kind: str, tmp_path: Path):
    model = load(kind, tmp_path).eval()
    for seed, name in enumerate(ADAPTERS[:2], 2):
        graft(model, LoraConfig(r=2, lora_alpha=64, target_modules="all-linear"), name)
        shake(model, seed)
    vocabulary = model.config.vocab_size
    rows = zip(prompts([5, 12, 20]), ["a", None, "b"], strict=True)
    given = [([token % vocabulary for token in prompt], adapter, 6) for prompt, adapter in rows]
    with serving(model) as engine:
        clients = [Client(*one, logprobs=0) for one in given]
        engine.submit([client.request for client in clients])
        for client, one in zip(clients, given, strict=True):
            answer = [event.token for event in client.all() if isinstance(event, Output) and event.token]
            logprobs = check(engine, model, one, [token.token for token in answer])
            assert [token.logprob for token in answer] == pytest.approx(logprobs, abs=ROUNDING)


def check(engine: Any, model: Any, given: tuple[list[int], str | None, int], answer: list[int]) -> list[float]:
    """Check that each token is, to rounding, the likeliest one after those before it; return its log-probability.

    Two tokens can be nearly as likely, and rounding decides between them.
    """
    prompt, adapter, length = given
    assert len(answer) == length
    rows = engine.call(lambda: log_probabilities(model, [*prompt, *answer], adapter)).result()[len(prompt) - 1 : -1]
    found = rows.gather(1, torch.tensor(answer)[:, None])[:, 0]
    assert (rows.amax(1) - found).max() <= ROUNDING
    likeliest: list[float] = found.tolist()
    return likeliest


@torch.no_grad()
def log_probabilities(model: Any, tokens: list[int], adapter: str | None) -> torch.Tensor:
    with mixed_batch(model, [adapter]) if adapter else disable_adapter(model):
        return torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)
