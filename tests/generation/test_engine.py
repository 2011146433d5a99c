"""The engine: a request gets what it gets alone."""

import functools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.errors import assert_refused
from tests.tiny import byte_tokenizer, seeded, shake, tiny_model
from tsugiki import LoraConfig, disable_adapter, graft, mixed_batch
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.generation import (
    Engine,
    Event,
    Failed,
    Limits,
    Output,
    PromptScores,
    QueueFull,
    Request,
    Sampling,
    WaitedTooLong,
    bytes_per_token,
)

GREEDY = Sampling(temperature=0)
TOKENIZER = byte_tokenizer()
ADAPTERS = ("a", "b", "c")


def model_with_adapters(kind: str, **overrides: Any) -> Any:
    """A tiny model with the vocabulary of the byte tokenizer and three adapters that change what it says."""
    model = tiny_model(kind, vocab_size=257, **overrides)
    for seed, name in enumerate(ADAPTERS):
        graft(model, LoraConfig(r=2 + seed, lora_alpha=64, target_modules="all-linear"), name)
        shake(model, seed)
    return model.eval()


@contextmanager
def serving(model: Any, **limits: Any) -> Iterator[Engine]:
    if "cache_tokens" in limits:
        limits["cache_bytes"] = limits.pop("cache_tokens") * bytes_per_token(model)
    engine = Engine(model, Limits(**limits))
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


class Client:
    """One request, and what comes back."""

    def __init__(self, prompt: list[int], adapter: str | None = None, max_tokens: int = 8, **fields: Any) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        fields = {"sampling": GREEDY, "tokenizer": TOKENIZER, **fields}
        self.request = Request(prompt, max_tokens=max_tokens, deliver=self.events.put, adapter=adapter, **fields)

    def all(self) -> list[Event]:
        """Wait for the last event, and return all."""
        found = []
        while True:
            found.append(self.events.get(timeout=60))
            last = found[-1]
            if isinstance(last, Failed):
                raise last.error
            if isinstance(last, Output) and last.finish_reason:
                return found

    def tokens(self) -> list[int]:
        return [one.token.token for one in self.all() if isinstance(one, Output) and one.token]

    def text(self) -> str:
        return "".join(one.text for one in self.all() if isinstance(one, Output))


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = seeded(1)
    return [torch.randint(1, 257, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def alone(model: Any, prompt: list[int], adapter: str | None, new: int) -> list[int]:
    """The greedy tokens by transformers' `generate`."""
    with mixed_batch(model, [adapter]) if adapter else disable_adapter(model):
        ids = torch.tensor([prompt])
        out = model.generate(ids, do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_greedy_tokens_are_those_of_each_request_alone(kind: str):
    model = model_with_adapters(kind)
    adapters, new = ["a", "b", "c", None, "a", "c", "b", "a"], [12, 3, 20, 8, 12, 5, 16, 12]
    given = list(zip(prompts([5, 12, 7, 30, 9, 20, 3, 15]), adapters, new, strict=True))
    expected = [alone(model, *one) for one in given]
    assert len({tuple(tokens[:3]) for tokens in expected}) > 4
    with serving(model, rows=3) as engine:
        clients = [Client(*one) for one in given]
        for client in clients:
            engine.submit([client.request])
        assert [client.tokens() for client in clients] == expected
        engine.call(lambda: None).result()
        assert (engine.running, engine.waiting) == (0, 0)


def test_an_adapter_that_was_changed_between_two_steps_is_computed_as_it_is():
    model, prompt = model_with_adapters("llama"), prompts([7])[0]

    def change() -> None:
        for pair in model._tsugiki.adapters["a"].pairs.values():
            pair.A.data, pair.scaling = pair.A.data.flip(1), pair.scaling / 2  # at another address

    with serving(model) as engine:
        found = []
        for function in (lambda: None, change):
            engine.call(function).result()
            client = Client(prompt, "a", 12)
            engine.submit([client.request])
            found.append(client.tokens())
    assert found[0] != found[1] == alone(model, prompt, "a", 12)


def test_a_short_prompt_does_not_wait_for_the_whole_of_a_long_one(monkeypatch: pytest.MonkeyPatch):
    model = model_with_adapters("llama")
    given = list(zip(prompts([60, 5, 58, 6]), ["a", "b", None, "c"], [3, 3, 4, 2], strict=True))
    expected = [alone(model, *one) for one in given]
    monkeypatch.setattr("tsugiki.generation.batch._PIECE", 4)
    monkeypatch.setattr("tsugiki.generation.scheduler._PADDING", 8)
    began: list[int] = []

    def noting(number: int, deliver: Any) -> Any:
        return lambda event: (began.append(number), deliver(event))

    with serving(model) as engine:
        clients = [Client(*one) for one in given]
        for number, client in enumerate(clients):
            client.request.deliver = noting(number, client.request.deliver)
        engine.submit([client.request for client in clients])
        assert [client.tokens() for client in clients] == expected
    assert list(dict.fromkeys(began))[:2] == [1, 3]


def test_a_seed_nearly_always_gives_the_same_text_in_16_bits():
    model, tokenizer = load_model("embedded", "bf16"), load_tokenizer("embedded")
    for seed, name in enumerate("abcd"):
        graft(model, LoraConfig(r=8, lora_alpha=16), name)
        shake(model, seed)
    ids: list[int] = tokenizer("夜になると、川の向こうから笛の音が", add_special_tokens=False).input_ids

    def client(seed: int, adapter: str | None = None) -> Client:
        prompt = ids[: 2 + seed % 7]  # other lengths, other products
        return Client(prompt, adapter, 16, tokenizer=tokenizer, sampling=Sampling(1.0, 1.0, seed))

    same = 0
    with serving(model, prefix_bytes=0) as engine:
        for seed in range(12):
            alone, together = client(seed), client(seed)
            engine.submit([alone.request])
            tokens = alone.tokens()
            engine.submit([*(client(seed + 100, name).request for name in "abcd"), together.request])
            same += together.tokens() == tokens
    assert same >= 10


def test_a_burst_fills_all_places():
    prompt, going_on = prompts([5])[0], threading.Event()
    with serving(model_with_adapters("gpt2"), rows=4, waiting=3) as engine:
        engine.call(lambda: going_on.wait(60))  # nothing is admitted meanwhile
        *admitted, late = (Client(prompt) for _ in range(8))
        for client in admitted:
            engine.submit([client.request])
        with pytest.raises(QueueFull):
            engine.submit([late.request])
        going_on.set()
        assert len({tuple(client.tokens()) for client in admitted}) == 1


def test_log_probabilities_are_those_of_the_model():
    model, prompt = model_with_adapters("gpt2"), prompts([12])[0]
    with serving(model) as engine:
        client = Client(prompt, "b", 4, logprobs=2, prompt_logprobs=True)
        other = Client(prompts([5])[0], "a", 4)
        engine.submit([other.request, client.request])
        events = client.all()
    scores = events[0]
    assert isinstance(scores, PromptScores)
    new = [one.token for one in events[1:] if isinstance(one, Output) and one.token]
    everything = [*scores.tokens, *new]
    ids = [one.token for one in everything]
    assert ids[:12] == prompt
    with torch.no_grad(), mixed_batch(model, ["b"]):
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
    assert everything[0].logprob is None
    for place, one in enumerate(everything[1:]):
        assert one.logprob == pytest.approx(float(expected[place, one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == expected[place].topk(2).indices.tolist()


def test_no_token_ends_a_text_before_its_least_length():
    model, prompt = model_with_adapters("llama"), prompts([6])[0]
    ends = set(alone(model, prompt, "a", 12))
    with serving(model) as engine:
        client = Client(prompt, "a", 12, ends=ends, min_tokens=3)
        engine.submit([client.request])
        assert not ends & set(client.tokens()[:3])


def test_a_cancelled_request_frees_its_row():
    with serving(model_with_adapters("gpt2"), rows=1) as engine:
        endless, waiting = Client([5], None, 63), Client(prompts([9])[0], "a", 5)
        engine.submit([endless.request])
        endless.events.get(timeout=60)
        engine.submit([waiting.request])
        engine.cancel(endless.request)
        assert len(waiting.tokens()) == 5
        assert endless.events.qsize() < 62


def test_an_exception_is_answered_to_its_owner_alone(monkeypatch: pytest.MonkeyPatch):
    model = model_with_adapters("llama")
    given = list(zip(prompts([6, 9, 5, 8]), ["a", None, "b", "c"], [10] * 4, strict=True))
    expected = [alone(model, *one) for one in given]
    used = {token for (prompt, _, _), tokens in zip(given, expected, strict=True) for token in [*prompt, *tokens]}
    poison = min(set(range(10, 257)) - used)
    forward = model.forward

    @functools.wraps(forward)
    def broken(input_ids: torch.Tensor, **others: Any) -> Any:
        out = forward(input_ids=input_ids, **others)
        if (input_ids == poison).any():  # after the cache was written
            raise RuntimeError("poison")
        return out

    with serving(model, rows=8) as engine:
        monkeypatch.setattr(model, "forward", broken)
        clients = [Client(*one) for one in given]
        later = Client([3, 4, 7], "b", sampling=Sampling(temperature=0, logit_bias={poison: 100.0}))
        failing = [Client([3, poison, 7], "b"), later]
        engine.submit([client.request for client in (*clients[:2], *failing)])
        engine.submit([client.request for client in clients[2:]])
        for client in failing:
            with pytest.raises(RuntimeError, match="poison"):
                client.all()
        assert [client.tokens() for client in clients] == expected
        assert engine.alive


def test_limits():
    model = tiny_model("gpt2", vocab_size=257)
    with serving(model, rows=1, cache_tokens=40, waiting=1) as engine:
        for prompt, new, said in ([1] * 60, 10, "30 too many"), ([], 1, "empty"):
            assert_refused(said, engine.submit, [Client(prompt, max_tokens=new).request])
        running = Client([1], max_tokens=38)
        hold: queue.Queue[None] = queue.Queue()
        engine.submit([running.request])
        running.events.get(timeout=60)
        blocked = engine.call(lambda: hold.get(timeout=60))
        late = Client([1] * 20)
        engine.submit([late.request])
        with pytest.raises(QueueFull):
            engine.submit([Client([1]).request])
        engine.scheduler.seconds = 0
        hold.put(None)
        blocked.result()
        with pytest.raises(WaitedTooLong):
            late.all()
        running.all()


def test_the_cache_holds_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch):
    model, sizes = tiny_model("llama", vocab_size=257), []
    update = DynamicCache.update

    def noted(self: DynamicCache, *args: Any, **others: Any) -> Any:
        keys, values = update(self, *args, **others)
        sizes.append(keys.shape[0] * keys.shape[2])
        return keys, values

    with serving(model, rows=8, cache_tokens=100) as engine:
        monkeypatch.setattr(DynamicCache, "update", noted)
        clients = [Client(prompt, max_tokens=12) for prompt in prompts([5, 20, 9, 40, 3, 30])]
        engine.submit([client.request for client in clients])
        for client in clients:
            client.all()
    assert 50 < max(sizes) <= 100
