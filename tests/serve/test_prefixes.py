"""The beginnings of prompts are computed once, and what one adapter has computed is never used for another."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import DynamicCache

from tests.generation.test_engine import Client, alone, model_with_adapters, prompts, serving
from tests.serve.conftest import Running, save_adapter_of
from tests.serve.test_metrics import values
from tsugiki import load_adapter
from tsugiki.base import load_model
from tsugiki.generation import BLOCK, CachedRows, PrefixCache


def computed_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of columns of each forward pass from now on."""
    forward, columns = model.forward, []

    def noted(input_ids: torch.Tensor, **others: Any) -> Any:
        columns.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **others)

    noted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", noted)
    return columns


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_tokens_after_a_known_beginning_are_those_of_each_request_alone(kind: str, monkeypatch: pytest.MonkeyPatch):
    model = model_with_adapters(kind)
    beginning, *ends = prompts([40, 3, 9, 1, 14, 6])
    adapters = ["a", None, "b", "a", None]
    given = [([*beginning, *end], adapter, 6) for end, adapter in zip(ends, adapters, strict=True)]
    given.append((prompts([5])[0], "c", 6))  # one without a known beginning among them
    expected = [alone(model, *one) for one in given]
    with serving(model) as engine:
        for adapter in ("a", "b", None):
            first = Client(beginning, adapter, 1, content=adapter or "")
            engine.submit([first.request])
            first.all()
        assert 0 < engine.prefixes.bytes <= engine.limits.prefix_bytes
        engine.call(lambda: None).result()
        columns = computed_tokens(model, monkeypatch)
        clients = [Client(*one, content=one[1] or "") for one in given]
        engine.submit([client.request for client in clients])
        assert [client.tokens() for client in clients] == expected
    assert max(columns) == 2 * BLOCK, "40 + 14 tokens without two blocks, padded to whole blocks"


def test_an_answer_is_a_known_beginning_too(monkeypatch: pytest.MonkeyPatch):
    model, prompt = model_with_adapters("llama"), prompts([20])[0]
    with serving(model) as engine:
        first = Client(prompt, "a", 20, content="a")
        engine.submit([first.request])
        longer = [*prompt, *first.tokens(), 5, 6]
        engine.call(lambda: None).result()
        columns = computed_tokens(model, monkeypatch)
        second = Client(longer, "a", 4, content="a", logprobs=1, prompt_logprobs=False)
        engine.submit([second.request])
        found = second.tokens()
    monkeypatch.undo()
    assert columns[0] == BLOCK, "42 tokens without two blocks, padded"
    assert found == alone(model, longer, "a", 4)


def test_requests_that_arrive_together_share_a_beginning(monkeypatch: pytest.MonkeyPatch):
    model, beginning = model_with_adapters("llama", max_position_embeddings=128), prompts([100])[0]
    given = [([*beginning, place], "a", 3) for place in range(1, 5)]
    expected = [alone(model, *one) for one in given]
    with serving(model) as engine:
        columns = computed_tokens(model, monkeypatch)
        clients = [Client(*one, content="a") for one in given]
        engine.submit([client.request for client in clients])
        assert [client.tokens() for client in clients] == expected
    assert [count for count in columns if count > 1] == [7 * BLOCK, BLOCK]


def test_prompts_whose_log_probabilities_are_wanted_are_computed_whole_and_together(monkeypatch: pytest.MonkeyPatch):
    model, prompt = model_with_adapters("gpt2", n_positions=128), prompts([100])[0]
    with serving(model) as engine:
        columns = computed_tokens(model, monkeypatch)
        clients = [Client(prompt, "a", 1, content="a", logprobs=0, prompt_logprobs=True) for _ in range(2)]
        engine.submit([client.request for client in clients])
        for client in clients:
            assert len(client.all()[0].tokens) == 100  # type: ignore[union-attr]
    assert [count for count in columns if count > 3] == [64, 48]  # without the probe of `mixed_batch`


def cached_rows(tokens: int) -> CachedRows:
    cache = DynamicCache()
    cache.update(torch.randn(1, 2, tokens, 4), torch.randn(1, 2, tokens, 4), 0)
    return CachedRows(torch.ones(1, tokens, dtype=torch.int64), cache)


def test_blocks_belong_to_what_computed_them_and_to_all_tokens_before():
    kept, tokens = PrefixCache(1 << 20), list(range(3 * BLOCK + 1))
    rows = cached_rows(len(tokens))
    kept.keep("one", tokens, rows, 0)
    assert kept.find("other", tokens).tokens == kept.find("", tokens).tokens == 0
    assert kept.find("one", [9, *tokens[1:]]).tokens == 0
    assert kept.find("one", [*tokens[: 2 * BLOCK], 9, *tokens[2 * BLOCK + 1 :]]).tokens == 2 * BLOCK
    found = kept.find("one", tokens)
    assert found.tokens == 3 * BLOCK
    for which, whole in enumerate((rows.cache.layers[0].keys, rows.cache.layers[0].values)):
        assert torch.equal(torch.cat([block[0][which] for block in found.blocks], 1), whole[0, :, : 3 * BLOCK])


def test_the_bytes_are_bounded_and_beginnings_stay_the_longest():
    size = 2 * 2 * BLOCK * 4 * 4  # of a block
    kept = PrefixCache(5 * size)
    first, second = list(range(100, 100 + 4 * BLOCK)), list(range(500, 500 + 3 * BLOCK))
    kept.keep("", first, cached_rows(len(first)), 0)
    kept.keep("", second, cached_rows(len(second)), 0)
    assert kept.bytes == 5 * size
    assert (kept.find("", first).tokens, kept.find("", second).tokens) == (2 * BLOCK, 3 * BLOCK)
    kept.keep("", list(range(900, 900 + 9 * BLOCK)), cached_rows(9 * BLOCK), 0)
    assert kept.bytes == 5 * size
    nothing = PrefixCache(0)
    nothing.keep("", first, cached_rows(len(first)), 0)
    assert nothing.bytes == 0


@torch.no_grad()
def test_an_adapter_that_was_replaced_under_its_name_has_nothing_of_the_old_one(server: Running):
    prompt = prompts([60])[0]

    def ask(name: str) -> str:
        body = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": 10, "ignore_eos": True}
        answer = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        return str(answer["choices"][0]["text"])

    def hits() -> float:
        found = values(httpx2.get(f"{server.url}/metrics").text)
        return found.get('vllm:prefix_cache_hits_total{model_name="changing"}', 0)

    def fresh() -> Any:
        model = load_model(server.base)
        load_adapter(model, folder)
        out = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=10, eos_token_id=None)
        return server.adapters.base.tokenizer.decode(out[0, 60:], skip_special_tokens=True)

    folder: Path = server.library / "changing"
    known = 60 - BLOCK  # the prompt is padded to 64 tokens, of which a block is computed
    try:
        shutil.copytree(server.library / "poet", folder)
        old = ask("changing")
        assert hits() == 0
        assert (ask("changing"), hits()) == (old, known)
        shutil.rmtree(folder)
        save_adapter_of(server.base, folder, 9)
        new = ask("changing")
        assert (new.rstrip("\N{REPLACEMENT CHARACTER}"), hits()) == (fresh().rstrip("\N{REPLACEMENT CHARACTER}"), known)
        assert new != old
        shutil.rmtree(folder)
        shutil.copytree(server.library / "poet", folder)  # the content of the first one again
        assert (ask("changing"), hits()) == (old, 2 * known)
    finally:
        shutil.rmtree(folder)
