"""The server, by OpenAI's client."""

import asyncio
import json
import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.serve.conftest import CONTEXT, Running, start
from tests.tiny import byte_tokenizer
from tsugiki import disable_adapter, load_adapter
from tsugiki.base import load_model
from tsugiki.lora import is_grafted

openai = pytest.importorskip("openai")
PROMPT = "on the mountain"


@pytest.fixture
def client(server: Running) -> Any:
    return connect(server)


def connect(server: Running, key: str = "none") -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text, add_special_tokens=False).input_ids
    return found


@torch.no_grad()
def greedy(server: Running, name: str | None, prompt: list[int], new: int) -> list[int]:
    """The tokens by transformers' `generate` on a model of its own."""
    model = load_model(server.base)
    if name:
        load_adapter(model, server.library / name)
    given = torch.tensor([prompt])
    out = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=new, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def text_of(tokens: list[int]) -> str:
    text: str = byte_tokenizer().decode([token for token in tokens if token], skip_special_tokens=True)
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_models(client: Any):
    models = {model.id: model for model in client.models.list()}
    assert next(iter(models)) == "base"
    assert {"poet", "lawyer", "歌人", "turns", "broken", "foreign"} == set(models) - {"base"}
    assert (models["base"].parent, models["base"].max_model_len) == (None, CONTEXT)
    assert (models["poet"].parent, models["poet"].root) == ("base", "poet")
    assert client.models.retrieve("歌人").id == "歌人"


def test_every_adapter_answers_as_alone_in_one_batch(server: Running):
    names = ["poet", None, "lawyer", "turns", "poet", "歌人"]
    expected = [text_of(greedy(server, name, [0, *ids(PROMPT)], 12)) for name in names]
    assert len(set(expected)) > 3

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.completions.create(model=name or "base", prompt=PROMPT, temperature=0, max_tokens=12)
                    for name in names
                )
            )
        return [answer.choices[0].text for answer in answers]

    assert asyncio.run(ask()) == expected
    assert len(server.adapters.loaded()) <= 2


def test_a_stream_is_the_answer_in_parts(client: Any):
    fields = {"model": "base:poet", "prompt": PROMPT, "max_tokens": 20, "temperature": 0.9, "seed": 3, "n": 2}
    whole = client.completions.create(**fields, echo=True, logprobs=1)
    parts: dict[int, str] = {0: "", 1: ""}
    tokens: dict[int, list[str]] = {0: [], 1: []}
    chunks = list(
        client.completions.create(**fields, echo=True, logprobs=1, stream=True, stream_options={"include_usage": True})
    )
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        choice = chunk.choices[0]
        parts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens
    for choice in whole.choices:
        assert parts[choice.index] == choice.text
        assert choice.text.startswith(PROMPT)
        assert tokens[choice.index] == choice.logprobs.tokens
    assert whole.choices[0].text != whole.choices[1].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens == 1 + len(ids(PROMPT))


def test_what_lm_eval_sends(server: Running, client: Any):
    prompts = [[0, *ids("a mountain stands")], [0, *ids("rivers")]]
    answer = client.completions.create(
        model="lawyer", prompt=prompts, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    model = load_model(server.base)
    load_adapter(model, server.library / "lawyer")
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1)
        found = choice.logprobs.token_logprobs
        assert found[0] is None
        assert len(found) == len(prompt) + 1
        for place, token in enumerate(prompt[1:]):
            assert found[place + 1] == pytest.approx(float(expected[place, token]), abs=1e-4)
            best = max(choice.logprobs.top_logprobs[place + 1].values())
            assert best == pytest.approx(float(expected[place].max()), abs=1e-4)


def test_chat(client: Any):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    fields = {"model": "歌人", "messages": messages, "temperature": 0, "max_completion_tokens": 10}
    answer = client.chat.completions.create(**fields, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert len(choice.logprobs.content) == answer.usage.completion_tokens
    assert len(choice.logprobs.content[0].top_logprobs) == 3
    assert choice.logprobs.content[0].logprob == choice.logprobs.content[0].top_logprobs[0].logprob
    rendered = "<|endoftext|>### system\nBe brief.\n\n### user\nhi\n\n### assistant\n"
    assert answer.usage.prompt_tokens == len(byte_tokenizer()(rendered).input_ids)
    by_text = client.completions.create(
        model="歌人", prompt=byte_tokenizer()(rendered).input_ids, temperature=0, max_tokens=10
    )
    assert by_text.choices[0].text == choice.message.content
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="歌人", messages=messages, max_tokens=0)
    stream = list(client.chat.completions.create(**fields, stream=True))
    assert stream[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == choice.message.content
    assert stream[-1].choices[0].finish_reason == choice.finish_reason


def test_an_answer_that_is_begun_is_continued_as_in_vllm(server: Running, client: Any):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "春の"}]
    fields = {"model": "歌人", "temperature": 0, "max_tokens": 10}
    with pytest.raises(openai.BadRequestError, match="nothing to answer"):
        client.chat.completions.create(messages=turns, **fields)
    more = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(messages=turns, extra_body=more, **fields).choices[0].message.content
    begun = [*ids("<|endoftext|>### user\nhi\n\n### assistant\n"), *ids("春の")]
    assert answer == client.completions.create(prompt=begun, **fields).choices[0].text
    for wrong in (turns[:1], turns[1:]):
        with pytest.raises(openai.BadRequestError, match="assistant"):
            client.chat.completions.create(messages=wrong, extra_body=more, **fields)


def test_the_repetition_penalty_of_the_base_applies_if_a_request_has_none(server: Running, client: Any):
    def ask(**fields: Any) -> str:
        answer = client.completions.create(model="base", prompt=PROMPT, temperature=0, max_tokens=30, extra_body=fields)
        return str(answer.choices[0].text)

    plain, penalised = ask(), ask(repetition_penalty=1.8)
    settings = server.adapters.engine.model.generation_config
    settings.repetition_penalty = 1.8
    try:
        assert (ask(), ask(repetition_penalty=1)) == (penalised, plain)
    finally:
        settings.repetition_penalty = None
    assert plain != penalised


def test_stop_strings_and_seeds(client: Any):
    def ask(**fields: Any) -> Any:
        return client.completions.create(model="poet", prompt=PROMPT, max_tokens=30, **fields).choices[0]

    one, same, other = (ask(seed=seed).text for seed in (1, 1, 2))
    assert one == same != other
    stop = one[4:6]
    stopped = ask(seed=1, stop=[stop])
    assert (stopped.text, stopped.finish_reason) == (one[: one.find(stop)], "stop")
    whole = ask(seed=1, extra_body={"min_tokens": 30})
    assert ask(seed=1, stop=[whole.text[4:6]], extra_body={"min_tokens": 30}) == whole


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "poett"}, 404, "'poet'"),
        ({"model": "../poet"}, 404, "poet"),
        ({"model": "broken"}, 400, "broken"),
        ({"model": "foreign"}, 400, "another base"),
        ({"prompt": [5] * CONTEXT}, 400, "1 too many"),
        ({"prompt": [257]}, 400, "257"),
        ({"prompt": []}, 400, "prompt"),
        ({"n": 9}, 400, "n"),
        ({"extra_body": {"best_of": 4}}, 400, "best_of"),
        ({"extra_body": {"guided_grammar": "a"}}, 400, "guided_grammar"),
    ],
)
def test_what_is_refused(server: Running, client: Any, fields: dict[str, Any], status: int, said: str):
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        client.completions.create(**{"model": "base", "prompt": PROMPT, **fields})
    assert caught.value.status_code == status
    assert str(server.library) not in str(caught.value), "clients must not see paths of the server"
    assert caught.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "echo", "wanted", "new"), [([5] * 250, False, 4096, 6), ([5] * CONTEXT, True, 0, 0)]
)
def test_an_answer_ends_where_the_context_does(client: Any, prompt: list[int], echo: bool, wanted: int, new: int):
    answer = client.completions.create(
        model="base", prompt=prompt, max_tokens=wanted, echo=echo, extra_body={"ignore_eos": True}
    )
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", new)


def test_a_header_names_the_fields_that_are_ignored(client: Any):
    ask = client.with_options(max_retries=0).completions.with_raw_response.create
    fields: dict[str, Any] = {"model": "base", "prompt": "a", "max_tokens": 1}
    for stream in (False, True):
        answer = ask(**fields, stream=stream, user="u", extra_body={"keep_alive": 1, "春\n": 1})
        assert answer.headers["x-ignored-fields"] == "user, keep_alive, %E6%98%A5%0A"
    assert "x-ignored-fields" not in ask(**fields).headers


def test_tokens_that_end_a_text(client: Any):
    def ask(**fields: Any) -> Any:
        return client.completions.create(
            model="poet", prompt=PROMPT, temperature=0, max_tokens=9, logprobs=0, extra_body=fields
        ).choices[0]

    whole = ask(ignore_eos=True)
    third = ids(whole.logprobs.tokens[2])
    first = whole.logprobs.tokens.index(whole.logprobs.tokens[2])
    stopped = ask(ignore_eos=True, stop_token_ids=third)
    assert (stopped.finish_reason, stopped.logprobs.tokens) == ("stop", whole.logprobs.tokens[: first + 1])


def test_cached_tokens_and_the_fingerprint(client: Any):
    prompt = [0, *ids("a beginning that two prompts have in common")]
    answers = [client.completions.create(model="lawyer", prompt=prompt, max_tokens=1, n=2) for _ in range(2)]
    first, second = (answer.usage.prompt_tokens_details.cached_tokens for answer in answers)
    assert first == 0
    assert 16 <= second < len(prompt)
    other = client.completions.create(model="base", prompt="a", max_tokens=1)
    assert answers[0].system_fingerprint == answers[1].system_fingerprint != other.system_fingerprint


def test_streams_end_with_an_event_when_the_server_does(served_files: tuple[str, Path], caplog: Any):
    for server in start(*served_files, stop_seconds=0):
        body = {"model": "base", "prompt": "a", "max_tokens": 250, "n": 4, "ignore_eos": True}
        statuses: list[int] = []

        def ask(url: str = server.url, body: Any = body, statuses: list[int] = statuses) -> None:
            statuses.append(httpx2.post(f"{url}/v1/completions", json=body, timeout=60).status_code)

        waiting = threading.Thread(target=ask)
        url, body = f"{server.url}/v1/completions", {**body, "stream": True}
        with httpx2.stream("POST", url, json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            waiting.start()
            while not server.engine.waiting:
                time.sleep(0.001)
            server.server.end()
            *_chunks, error, _empty, done, _end = lines
        waiting.join(60)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "stopping"
    assert done == "data: [DONE]"
    assert statuses == [503]
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


def test_a_chat_that_is_refused(client: Any):
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "no_chat_template"


def test_a_client_that_goes_away_frees_its_rows(server: Running, client: Any):
    stream = client.completions.create(
        model="base", prompt="a", max_tokens=250, stream=True, n=4, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(
            model="base", prompt="a", max_tokens=250, n=8, extra_body={"ignore_eos": True}
        )
    deadline = time.monotonic() + 30
    while (server.engine.running, server.engine.waiting) != (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (server.engine.running, server.engine.waiting) == (0, 0)
    assert client.completions.create(model="base", prompt="a", max_tokens=2).usage.completion_tokens == 2


def test_the_model_is_its_base_after_all(server: Running):
    """Adapters leave nothing behind."""
    fresh = load_model(server.base)
    tokens = torch.tensor([[0, *ids(PROMPT)]])

    def logits() -> torch.Tensor:
        if not is_grafted(server.model):
            return server.model(tokens).logits
        with disable_adapter(server.model):
            return server.model(tokens).logits

    with torch.no_grad():
        assert torch.equal(server.engine.call(logits).result(), fresh(tokens).logits)


def test_adapters_in_memory_are_bounded_in_bytes(served_files: tuple[str, Path]):
    sizes = {}
    for server in start(*served_files, max_loaded=9):
        for name in ("poet", "lawyer"):
            connect(server).completions.create(model=name, prompt="a", max_tokens=1)
        sizes = {one.name: one.bytes for one in server.adapters._loaded.values()}
    assert 0 < sizes["poet"] == sizes["lawyer"]
    for server in start(*served_files, max_loaded=9, max_bytes=2 * sizes["poet"] - 1):
        for name in ("poet", "lawyer", "poet"):
            connect(server).completions.create(model=name, prompt="a", max_tokens=1)
            assert server.adapters.loaded() == [name]
    for server in start(*served_files, max_bytes=sizes["poet"] - 1):
        with pytest.raises(openai.BadRequestError, match="memory"):
            connect(server).completions.create(model="poet", prompt="a", max_tokens=1)
        assert server.adapters.loaded() == []


def slow_loads(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Let loads of adapters wait; the events say that one has begun, and that they may go on."""
    from tsugiki.serve import served_adapters as module

    begun, allowed = threading.Event(), threading.Event()
    load = module.load_served

    def slow(*given: Any) -> Any:
        begun.set()
        allowed.wait(60)
        return load(*given)

    monkeypatch.setattr(module, "load_served", slow)
    return begun, allowed


def test_waiting_for_an_adapter_ends_and_what_is_half_loaded_is_not_lost(
    served_files: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
):
    _begun, allowed = slow_loads(monkeypatch)
    for server in start(*served_files, limits={"seconds": 0.2}):
        client = connect(server)
        for name in ("poet", "lawyer"):  # the first is being loaded, the second waits for that
            with pytest.raises(openai.InternalServerError, match=r"0\.2 s") as caught:
                client.completions.create(model=name, prompt="a", max_tokens=1)
            assert caught.value.response.headers["retry-after"] == "5"
        allowed.set()
        deadline = time.monotonic() + 30
        while server.adapters.loaded() != ["poet"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.adapters.loaded() == ["poet"]
        server.engine.limits = replace(server.engine.limits, seconds=60)
        client.completions.create(model="poet", prompt="a", max_tokens=1)
        assert len(server.model._tsugiki.adapters) == 1


def test_an_adapter_that_is_asked_for_without_a_pause_makes_room(served_files: tuple[str, Path]):
    async def take_turns(adapters: Any) -> None:
        held = await adapters.acquire("poet")
        other = asyncio.create_task(adapters.acquire("lawyer"))
        await asyncio.sleep(0.1)
        again = asyncio.create_task(adapters.acquire("poet"))  # if it were given, poet would be in use for ever
        await asyncio.sleep(0.1)
        assert not again.done()
        adapters.release(held)
        served = await asyncio.wait_for(other, 30)
        assert served.name == "lawyer"
        adapters.release(served)
        adapters.release(await asyncio.wait_for(again, 30))

    for server in start(*served_files, max_loaded=1):
        asyncio.run(take_turns(server.adapters))
        assert server.adapters.loaded() == ["poet"]


def test_nothing_is_loaded_for_a_client_that_has_gone(served_files: tuple[str, Path], monkeypatch: pytest.MonkeyPatch):
    begun, allowed = slow_loads(monkeypatch)
    for server in start(*served_files):
        first = threading.Thread(target=connect(server).completions.create, kwargs={"model": "poet", "prompt": "a"})
        first.start()
        assert begun.wait(60)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{server.url}/v1/completions", json={"model": "lawyer", "prompt": "a"}, timeout=0.5)
        allowed.set()
        first.join(60)
        time.sleep(0.5)  # in which the other one would be loaded
        assert server.adapters.loaded() == ["poet"]


def test_a_busy_server_says_so(served_files: tuple[str, Path]):
    for server in start(*served_files, limits={"rows": 1, "waiting": 1}):
        client = connect(server)
        streams = [
            client.completions.create(
                model="base", prompt="a", max_tokens=250, stream=True, extra_body={"ignore_eos": True}
            )
        ]
        second = threading.Thread(target=client.completions.create, kwargs={"model": "base", "prompt": "a"})
        second.start()
        while server.engine.waiting == 0 and server.engine.running:
            time.sleep(0.001)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="base", prompt="a")
        assert caught.value.response.headers["retry-after"] == "1"
        streams[0].close()
        second.join(60)


def test_a_key_is_needed_where_there_is_one(served_files: tuple[str, Path]):
    for server in start(*served_files, api_key="secret"):
        with pytest.raises(openai.AuthenticationError):
            connect(server, "wrong").models.list()
        assert connect(server, "secret").models.list().data


def test_a_request_takes_no_longer_than_allowed(served_files: tuple[str, Path]):
    for server in start(*served_files, seconds=0.05):
        with pytest.raises(openai.InternalServerError, match=r"0\.05 s"):
            connect(server).completions.create(
                model="base", prompt="a", max_tokens=250, n=4, extra_body={"ignore_eos": True}
            )
        assert math.isclose(server.engine.limits.seconds, 60)
