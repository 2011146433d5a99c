"""Mixes of adapters for one request, by OpenAI's client."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.serve.asking import PROMPT, assert_scores, at_once, connect, greedy, ids, openai, texts
from tests.serve.conftest import Running, save_adapter_of, start
from tsugiki.adapters import combine, load_weighted_adapters, write_lora_weights

MIX = {"poet": 0.7, "lawyer": -0.3}


def asked(mix: dict[str, Any], **fields: Any) -> dict[str, Any]:
    settings = {"model": "base", "prompt": PROMPT, "temperature": 0, "max_tokens": 12, "extra_body": {"adapters": mix}}
    return settings | fields


def ask(server: Running, mix: dict[str, Any], **fields: Any) -> Any:
    return connect(server).completions.create(**asked(mix, **fields)).choices[0]


def test_a_mix_is_the_combined_adapter(server: Running, tmp_path: Path):
    parts = load_weighted_adapters([server.library / name for name in MIX], list(MIX.values()))
    write_lora_weights(combine(parts), tmp_path / "combined", None)
    expected = greedy(server, None, folder=tmp_path / "combined")
    assert expected not in [greedy(server, name) for name in ("poet", "lawyer", None)]
    assert ask(server, MIX).text == expected
    prompt = [0, *ids(PROMPT)]
    scores = ask(server, MIX, echo=True, logprobs=1, prompt=prompt, max_tokens=0).logprobs
    assert_scores(server, tmp_path / "combined", prompt, scores)


def test_mixes_share_a_batch_with_others(served_files: tuple[str, Path]):
    three = {"歌人": 0.5, "poet": 0.5, "lawyer": 0.5}
    mixes = [MIX, three, {"poet": 1.0}, {"base:lawyer": 1}, {"poet": 0, "lawyer": 0}]
    with start(*served_files, max_loaded=8, limits={"rows": 8}) as server:
        alone = [ask(server, mix).text for mix in mixes]
        assert alone[2:] == [greedy(server, name) for name in ("poet", "lawyer", None)]
        assert len(set(alone)) == len(alone)
        assert texts(at_once(server, [asked(mix) for mix in mixes])) == alone


def test_a_chat_uses_the_template_of_the_largest_part(client: Any):
    fields: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    answer = client.chat.completions.create(**fields, extra_body={"adapters": {"歌人": 0.6, "poet": 0.4}})
    assert answer.usage.prompt_tokens > 20
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(**fields, extra_body={"adapters": {"poet": 1}})


def test_a_mix_is_known_by_its_content(own_files: tuple[str, Path]):
    """A digest depends on weights and contents, not on names, and a replaced part is another mix."""
    with start(*own_files, max_loaded=8) as server:

        def digest(mix: dict[str, float], name: str = "base") -> str:
            async def load() -> str:
                served = await server.adapters.acquire(name, mix)
                server.adapters.release(served)
                return str(served.digest)

            return asyncio.run(load())

        copy = server.library / "copy"
        shutil.copytree(server.library / "poet", copy)
        mixes = [{"poet": 0.5, "lawyer": 1}, {"poet": 1, "lawyer": 0.5}, {"poet": 1}, {}]
        assert digest(mixes[0]) == digest({"lawyer": 1.0, "copy": 0.5})
        assert digest({}, "poet") == digest({}, "copy")
        assert len({digest({}, "poet"), *map(digest, mixes)}) == 5
        before = ask(server, {"copy": 1}).text
        shutil.rmtree(copy)
        save_adapter_of(server.base, copy, 9)
        assert digest({"copy": 1}) != digest({"poet": 1})
        assert before != ask(server, {"copy": 1}).text == greedy(server, "copy")
