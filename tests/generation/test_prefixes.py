"""The beginnings of prompts are computed once, and what one adapter has computed is never used for another."""

import inspect
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.generation.test_engine import Client, alone, model_with_adapters, prompts, serving
from tsugiki.generation import BLOCK, CachedRows, PrefixCache, Row


def computed_tokens(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of columns of each forward pass from now on."""
    forward, columns = model.forward, []

    def noted(input_ids: torch.Tensor, **others: Any) -> Any:
        columns.append(input_ids.shape[1])
        return forward(input_ids=input_ids, **others)

    noted.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", noted)
    return columns


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
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
        assert 0 < engine.scheduler.prefixes.bytes <= engine.limits.prefix_bytes
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


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed_whole():
    model, prompt = model_with_adapters("gpt2"), prompts([40])[0]
    with serving(model) as engine:
        for _ in range(2):
            client = Client(prompt, "a", 1, content="a", logprobs=0, prompt_logprobs=True)
            engine.submit([client.request])
            assert len(client.all()[0].tokens) == 40  # type: ignore[union-attr]


def row_of(tokens: list[int], content: str = "") -> Row:
    return Row(Client(tokens, content=content).request)


def cached_rows(tokens: int) -> CachedRows:
    cache = DynamicCache()
    cache.update(torch.randn(1, 2, tokens, 4), torch.randn(1, 2, tokens, 4), 0)
    return CachedRows(torch.ones(1, tokens, dtype=torch.int64), cache)


def test_blocks_belong_to_what_computed_them_and_to_all_tokens_before():
    kept, tokens = PrefixCache(1 << 20), list(range(3 * BLOCK + 1))
    rows = cached_rows(len(tokens))
    kept.keep(row_of(tokens, "one"), rows, 0)
    for other, content, known in (
        (tokens, "other", 0),
        (tokens, "", 0),
        ([9, *tokens[1:]], "one", 0),
        ([*tokens[: 2 * BLOCK], 9, *tokens[2 * BLOCK + 1 :]], "one", 2),
        (tokens[:-1], "one", 2),  # the logits of the last token are needed
    ):
        assert len(kept.find(row_of(other, content))) == known
    found = kept.find(row_of(tokens, "one"))
    assert len(found) == 3
    for which, whole in enumerate((rows.cache.layers[0].keys, rows.cache.layers[0].values)):
        assert torch.equal(torch.cat([block[0][which] for block in found], 1), whole[0, :, : 3 * BLOCK])


def test_the_bytes_are_bounded_and_beginnings_stay_the_longest():
    size = 2 * 2 * BLOCK * 4 * 4  # of a block
    kept = PrefixCache(5 * size)
    first, second, third = (list(range(start, start + n * BLOCK + 1)) for start, n in ((100, 4), (500, 3), (900, 9)))
    for tokens in (first, second, third):
        kept.keep(row_of(tokens), cached_rows(len(tokens)), 0)
        assert kept.bytes <= 5 * size
        if tokens is second:
            assert (len(kept.find(row_of(first))), len(kept.find(row_of(second)))) == (2, 3)
    assert kept.bytes == 5 * size
