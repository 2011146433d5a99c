"""The server, by OpenAI's client."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.serve.asking import PROMPT, assert_scores, at_once, connect, greedy, ids, openai, texts
from tests.serve.conftest import CONTEXT, Running, start
from tsugiki import disable_adapter
from tsugiki.base import load_model
from tsugiki.lora import is_grafted

LONG: dict[str, Any] = {"model": "base", "prompt": "a", "max_tokens": 250}
ALL: dict[str, Any] = {"ignore_eos": True}
"""What is no field of OpenAI's: so that a long answer does not end before."""


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most half a minute."""
    for _turn in range(3000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never holds")


def test_models(client: Any):
    models = {model.id: model for model in client.models.list()}
    assert next(iter(models)) == "base"
    assert {"poet", "lawyer", "歌人", "turns", "dora", "broken", "foreign"} == set(models) - {"base"}
    assert (models["base"].parent, models["base"].max_model_len) == (None, CONTEXT)
    assert (models["poet"].parent, models["poet"].root) == ("base", "poet")
    assert client.models.retrieve("歌人").id == "歌人"


def test_every_adapter_answers_as_alone_in_one_batch(server: Running):
    names = ["poet", None, "lawyer", "turns", "poet", "歌人"]
    expected = [greedy(server, name) for name in names]
    assert len(set(expected)) > 3
    fields = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    assert texts(at_once(server, [{"model": name or "base", **fields} for name in names])) == expected
    assert len(server.adapters.loaded()) <= 2


def test_a_stream_is_the_answer_in_parts(client: Any):
    fields = {"model": "base:poet", "prompt": PROMPT, "max_tokens": 20, "temperature": 0.9, "seed": 3, "n": 2}
    fields |= {"echo": True, "logprobs": 1}
    whole = client.completions.create(**fields)
    *chunks, last = client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    assert not any(chunk.usage for chunk in chunks)
    for choice in whole.choices:
        parts = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        for name in ("tokens", "text_offset"):
            assert [one for part in parts for one in getattr(part.logprobs, name)] == getattr(choice.logprobs, name)
        assert choice.text.startswith(PROMPT)
    assert whole.choices[0].text != whole.choices[1].text
    assert (last.choices, last.usage) == ([], whole.usage)
    assert whole.usage.prompt_tokens == 1 + len(ids(PROMPT))


@pytest.mark.parametrize("echo", [False, True])
def test_the_offset_of_a_token_is_where_its_character_begins(client: Any, echo: bool):
    pytest.importorskip("llguidance")
    fields = {"prompt": "夏の a", "max_tokens": 20, "echo": echo, "logprobs": 0}
    answer = client.completions.create(model="poet", **fields, extra_body={"guided_choice": [" b春の夜"]}).choices[0]
    assert answer.text == ("夏の a b春の夜" if echo else " b春の夜")
    expected = [place for place, letter in enumerate(answer.text) for _byte in letter.encode()]
    assert answer.logprobs.text_offset[: len(expected)] == expected
    assert {*answer.logprobs.text_offset[len(expected) :]} <= {len(answer.text)}  # the token that ends the text


def test_what_lm_eval_sends(server: Running, client: Any):
    prompts = [[0, *ids("a mountain stands")], [0, *ids("rivers")]]
    fields = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client.completions.create(model="lawyer", prompt=prompts, **fields)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        assert len(choice.logprobs.tokens) == len(prompt) + 1
        assert_scores(server, server.library / "lawyer", prompt, choice.logprobs)


def test_chat(client: Any):
    user = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    messages = [{"role": "system", "content": "Be brief."}, user]
    fields = {"model": "歌人", "messages": messages, "temperature": 0, "max_completion_tokens": 10}
    answer = client.chat.completions.create(**fields, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    first, *others = choice.logprobs.content
    assert 1 + len(others) == answer.usage.completion_tokens
    assert len(first.top_logprobs) == 3
    assert first.logprob == first.top_logprobs[0].logprob
    rendered = ids("<|endoftext|>### system\nBe brief.\n\n### user\nhi\n\n### assistant\n")
    assert answer.usage.prompt_tokens == len(rendered)
    by_text = client.completions.create(model="歌人", prompt=rendered, temperature=0, max_tokens=10)
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
    with pytest.raises(openai.BadRequestError, match="continue_final_message: true it is continued"):
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


def mix(**factors: Any) -> dict[str, Any]:
    return {"extra_body": {"adapters": factors}}


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
        (mix(poett=1), 404, "'poet'"),
        (mix(**{"../library/poet": 1}), 404, "poet"),
        (mix(poet=1, base=1), 400, "base"),
        (mix(poet="1"), 400, "poet"),
        (mix(), 400, "at least 1"),
        (mix(**dict.fromkeys("abcdefghi", 1)), 400, "at most 8"),
        (mix(poet=1, turns=1), 400, "LoRA"),
        (mix(poet=1, dora=1), 400, "DoRA"),
        (mix(poet=1, broken=1), 400, "broken"),
        (mix(poet=1, foreign=1), 400, "another base"),
        ({**mix(poet=1), "model": "poet"}, 400, "must be the base, 'base'"),
    ],
)
def test_what_is_refused(server: Running, client: Any, fields: dict[str, Any], status: int, said: str):
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        client.completions.create(**{"model": "base", "prompt": PROMPT, **fields})
    assert caught.value.status_code == status
    assert str(server.library) not in str(caught.value), "clients must not see paths of the server"
    assert caught.value.body["type"] == "invalid_request_error"
    assert "adapters" not in str(fields) or caught.value.param.startswith("adapters")


def test_an_answer_ends_where_the_context_does(client: Any):
    for length, echo, wanted, new in ((250, False, 4096, 6), (CONTEXT, True, 0, 0)):
        fields = {"prompt": [5] * length, "max_tokens": wanted, "echo": echo}
        answer = client.completions.create(model="base", **fields, extra_body=ALL)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", new)


def test_another_address_is_answered_with_those_that_there_are(client: Any):
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions, /v1/responses"):
        client.embeddings.create(model="base", input="a")


def test_a_header_names_the_fields_that_are_ignored(client: Any):
    ask = client.completions.with_raw_response.create
    fields: dict[str, Any] = {"model": "base", "prompt": "a", "max_tokens": 1}
    for stream in (False, True):
        answer = ask(**fields, stream=stream, user="u", extra_body={"keep_alive": 1, "春\n": 1})
        assert answer.headers["x-ignored-fields"] == "user, keep_alive, %E6%98%A5%0A"
    assert "x-ignored-fields" not in ask(**fields).headers


def test_tokens_that_end_a_text(client: Any):
    fields = {"model": "poet", "prompt": PROMPT, "temperature": 0, "max_tokens": 9, "logprobs": 0}
    tokens = client.completions.create(**fields, extra_body=ALL).choices[0].logprobs.tokens
    ending = {**ALL, "stop_token_ids": ids(tokens[2])}
    stopped = client.completions.create(**fields, extra_body=ending).choices[0]
    assert (stopped.finish_reason, stopped.logprobs.tokens) == ("stop", tokens[: tokens.index(tokens[2]) + 1])


def test_cached_tokens_and_the_fingerprint(client: Any):
    prompt = [0, *ids("a beginning that two prompts have in common")]
    answers = [client.completions.create(model="lawyer", prompt=prompt, max_tokens=1, n=2) for _ in range(2)]
    first, second = (answer.usage.prompt_tokens_details.cached_tokens for answer in answers)
    assert first == 0
    assert 16 <= second < len(prompt)
    other = client.completions.create(model="base", prompt="a", max_tokens=1)
    assert answers[0].system_fingerprint == answers[1].system_fingerprint != other.system_fingerprint


def test_streams_end_with_an_event_when_the_server_does(served_files: tuple[str, Path], caplog: Any):
    body, statuses = {**LONG, **ALL, "n": 4}, list[int]()
    with start(*served_files, stop_seconds=0) as server:
        url = f"{server.url}/v1/completions"

        def ask() -> None:
            statuses.append(httpx2.post(url, json=body, timeout=60).status_code)

        waiting = threading.Thread(target=ask)
        with httpx2.stream("POST", url, json={**body, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            waiting.start()
            until(lambda: server.engine.waiting)
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
    stream = client.completions.create(**LONG, stream=True, n=4, extra_body=ALL)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).completions.create(**LONG, n=8, extra_body=ALL)
    until(lambda: (server.engine.running, server.engine.waiting) == (0, 0))
    assert client.completions.create(model="base", prompt="a", max_tokens=2).usage.completion_tokens == 2


def test_the_model_is_its_base_after_all(server: Running):
    """Adapters leave nothing behind."""
    fresh, tokens = load_model(server.base), torch.tensor([[0, *ids(PROMPT)]])

    @torch.no_grad()
    def logits() -> torch.Tensor:
        with disable_adapter(server.model) if is_grafted(server.model) else nullcontext():
            return server.model(tokens).logits

    assert torch.equal(server.engine.call(logits).result(), fresh(tokens).logits)


def test_adapters_in_memory_are_bounded_in_bytes(served_files: tuple[str, Path]):
    with start(*served_files, max_loaded=9) as server:
        for name in ("poet", "lawyer"):
            connect(server).completions.create(model=name, prompt="a", max_tokens=1)
        one, other = (one.bytes for one in server.adapters._loaded.values())
        assert 0 < one == other
        server.adapters.max_bytes = 2 * one - 1
        for name in ("歌人", "poet", "歌人"):
            connect(server).completions.create(model=name, prompt="a", max_tokens=1)
            assert server.adapters.loaded() == [name]
        server.adapters.max_bytes = one - 1
        with pytest.raises(openai.BadRequestError, match="memory"):
            connect(server).completions.create(model="lawyer", prompt="a", max_tokens=1)


def test_the_memory_of_adapters_leaves_out_only_unreadable_ones(served_files: tuple[str, Path], tmp_path: Path):
    from tsugiki.serve.served_adapters import memory_of

    poet = served_files[1] / "poet"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    assert memory_of([tmp_path, poet]) == memory_of([poet, tmp_path]) == memory_of([poet]) > 0


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
    with start(*served_files, limits={"seconds": 0.2}) as server:
        client = connect(server)
        for name in ("poet", "lawyer"):  # the first is being loaded, the second waits for that
            with pytest.raises(openai.InternalServerError, match=r"0\.2 s") as caught:
                client.completions.create(model=name, prompt="a", max_tokens=1)
            assert caught.value.response.headers["retry-after"] == "5"
        allowed.set()
        until(lambda: server.adapters.loaded() == ["poet"])
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

    with start(*served_files, max_loaded=1) as server:
        asyncio.run(take_turns(server.adapters))
        assert server.adapters.loaded() == ["poet"]


def test_nothing_is_loaded_for_a_client_that_has_gone(served_files: tuple[str, Path], monkeypatch: pytest.MonkeyPatch):
    begun, allowed = slow_loads(monkeypatch)
    with start(*served_files) as server:
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
    with start(*served_files, limits={"rows": 1, "waiting": 1}) as server:
        create = connect(server).completions.create
        first = create(**LONG, stream=True, extra_body=ALL)
        second = threading.Thread(target=create, kwargs={"model": "base", "prompt": "a"})
        second.start()
        until(lambda: server.engine.waiting or not server.engine.running)
        with pytest.raises(openai.RateLimitError) as caught:
            create(model="base", prompt="a")
        assert caught.value.response.headers["retry-after"] == "1"
        first.close()
        second.join(60)


def test_a_key_is_needed_where_there_is_one(served_files: tuple[str, Path]):
    with start(*served_files, api_key="secret") as server:
        with pytest.raises(openai.AuthenticationError):
            connect(server, "wrong").models.list()
        assert connect(server, "secret").models.list().data


def test_a_request_takes_no_longer_than_allowed(served_files: tuple[str, Path]):
    with start(*served_files, seconds=0.05) as server:
        with pytest.raises(openai.InternalServerError, match=r"0\.05 s"):
            connect(server).completions.create(**LONG, n=4, extra_body=ALL)
        assert math.isclose(server.engine.limits.seconds, 60)
