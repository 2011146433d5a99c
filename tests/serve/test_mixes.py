"""Mixes of adapters for one request, by OpenAI's client."""

import asyncio
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.conftest import Running, save_adapter_of, start
from tests.serve.test_server import PROMPT, connect, greedy, ids, text_of
from tsugiki import load_adapter
from tsugiki.adapters import Combination, combine, load_weighted_adapters, write_lora_weights
from tsugiki.base import load_model
from tsugiki.lora import LoraConfig

openai = pytest.importorskip("openai")
MIX = {"poet": 0.7, "lawyer": -0.3}


def combined(server: Running, mix: dict[str, float], out: Path) -> Path:
    """Write the adapter that the algebra makes of a mix, and return its folder."""
    parts = load_weighted_adapters([server.library / name for name in mix], list(mix.values()))
    write_lora_weights(combine(parts, Combination("cat")), out, None)
    return out


def ask(server: Running, mix: dict[str, float], **fields: Any) -> Any:
    client = connect(server)
    settings = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 12, "extra_body": {"adapters": mix}}
    return client.completions.create(**{**settings, **fields}).choices[0]


def test_a_mix_is_the_combined_adapter(server: Running, tmp_path: Path):
    folder = combined(server, MIX, tmp_path / "combined")
    prompt = [0, *ids(PROMPT)]
    expected = greedy(dataclasses.replace(server, library=tmp_path), "combined", prompt, 12)
    assert expected not in [greedy(server, name, prompt, 12) for name in ("poet", "lawyer", None)]
    assert ask(server, MIX).text == text_of(expected)
    scores = ask(server, MIX, echo=True, logprobs=0, prompt=prompt, max_tokens=0).logprobs.token_logprobs
    model = load_model(server.base)
    load_adapter(model, folder)
    with torch.no_grad():
        of_tokens = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1)
    for place, token in enumerate(prompt[1:]):
        assert scores[place + 1] == pytest.approx(float(of_tokens[place, token]), abs=1e-4)


def test_mixes_share_a_batch_with_others(served_files: tuple[str, Path]):
    mixes = [
        MIX,
        {"poet": 1.0},
        {"歌人": 0.5, "poet": 0.5, "lawyer": 0.5},
        {"base:lawyer": 1},
        {"poet": 0, "lawyer": 0},
    ]
    for server in start(*served_files, max_loaded=8, limits={"rows": 8}):
        alone = [ask(server, mix).text for mix in mixes]
        assert alone[1:2] + alone[3:] == [
            text_of(greedy(server, name, [0, *ids(PROMPT)], 12)) for name in ("poet", "lawyer", None)
        ]
        assert len(set(alone)) == len(alone)

        async def together(url: str = server.url) -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
                fields: dict[str, Any] = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
                requests = [client.completions.create(**fields, extra_body={"adapters": mix}) for mix in mixes]
                return [answer.choices[0].text for answer in await asyncio.gather(*requests)]

        assert asyncio.run(together()) == alone


def test_a_chat_uses_the_template_of_the_largest_part(server: Running):
    fields: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    client = connect(server)
    mix = {"歌人": 0.6, "poet": 0.4}
    answer = client.chat.completions.create(**fields, temperature=0, extra_body={"adapters": mix})
    assert answer.usage.prompt_tokens > 20
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(**fields, extra_body={"adapters": {"poet": 1}})


@pytest.mark.parametrize(
    ("mix", "status", "said"),
    [
        ({"poett": 1}, 404, "'poet'"),
        ({"../library/poet": 1}, 404, "poet"),
        ({"poet": 1, "base": 1}, 400, "base"),
        ({"poet": "1"}, 400, "poet"),
        ({}, 400, "at least 1"),
        ({f"a{number}": 1 for number in range(9)}, 400, "at most 8"),
        ({"poet": 1, "turns": 1}, 400, "LoRA"),
        ({"poet": 1, "dora": 1}, 400, "DoRA"),
        ({"poet": 1, "broken": 1}, 400, "broken"),
        ({"poet": 1, "foreign": 1}, 400, "another base"),
    ],
)
def test_what_is_refused(server: Running, mix: dict[str, Any], status: int, said: str):
    if "dora" in mix and not (server.library / "dora").exists():
        save_adapter_of(server.base, server.library / "dora", 8, LoraConfig(r=2, use_dora=True))
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        ask(server, mix)
    assert caught.value.status_code == status
    assert caught.value.param.startswith("adapters")
    assert str(server.library) not in str(caught.value)
    assert ask(server, {"poet": 1}).text
    with pytest.raises(openai.BadRequestError, match="must be the base, 'base'"):
        ask(server, {"poet": 1}, model="poet")


def test_a_mix_is_known_by_its_content(served_files: tuple[str, Path]):
    """A digest depends on weights and contents, not on names, and a replaced part is another mix."""
    for server in start(*served_files, max_loaded=8):
        adapters = server.adapters

        def digest(mix: dict[str, float], name: str = "base", adapters: Any = adapters) -> str:
            async def load() -> str:
                served = await adapters.acquire(name, mix)
                adapters.release(served)
                return str(served.digest)

            return asyncio.run(load())

        shutil.copytree(server.library / "poet", server.library / "copy")
        try:
            assert digest({"poet": 0.5, "lawyer": 1}) == digest({"lawyer": 1.0, "copy": 0.5})
            found = {
                digest({"poet": 0.5, "lawyer": 1}),
                digest({"poet": 1, "lawyer": 0.5}),
                digest({"poet": 1}),
                digest({}, "poet"),
                digest({}),
            }
            assert len(found) == 5
            assert digest({}, "poet") == digest({}, "copy")
            before = ask(server, {"copy": 1}).text
            shutil.rmtree(server.library / "copy")
            save_adapter_of(server.base, server.library / "copy", 9)
            assert digest({"copy": 1}) != digest({"poet": 1})
            after = ask(server, {"copy": 1}).text
            assert before != after == text_of(greedy(server, "copy", [0, *ids(PROMPT)], 12))
        finally:
            shutil.rmtree(server.library / "copy")
