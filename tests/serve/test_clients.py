"""Clients that nobody here wrote: curl, LangChain and the language model evaluation harness."""

import json
import math
import shutil
import subprocess
from typing import Any

import pytest
import torch

from tests.serve.conftest import Running
from tests.tiny import byte_tokenizer
from tsugiki import load_adapter
from tsugiki.base import load_model

CONTEXT, CONTINUATION = "a mountain", " stands"


def test_curl(server: Running):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(path: str, body: dict[str, Any], *options: str) -> str:
        command = ["curl", "-sS", *options, server.url + path, "--json", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    body = {"model": "poet", "prompt": CONTEXT, "max_tokens": 8, "seed": 1}
    whole = json.loads(curl("/v1/completions", body))["choices"][0]["text"]
    lines = curl("/v1/completions", {**body, "stream": True}, "-N").split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(part["choices"][0]["text"] for part in parts) == whole
    assert curl("/v1/completions", {"model": "nobody", "prompt": ""}, "-o", "/dev/null", "-w", "%{http_code}") == "404"


def test_langchain(server: Running):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(
        model="歌人", base_url=f"{server.url}/v1", api_key="none", temperature=0, max_tokens=8, stream_usage=True
    )
    answer = chat.invoke([("system", "Be brief."), ("user", "hi")])
    chunks = list(chat.stream([("system", "Be brief."), ("user", "hi")]))
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert answer.usage_metadata["output_tokens"] == sum(
        chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata
    )
    completion = langchain.OpenAI(
        model="poet", base_url=f"{server.url}/v1", api_key="none", max_tokens=8, temperature=0
    )
    assert isinstance(completion.invoke(CONTEXT), str)


@pytest.mark.slow
def test_evaluation_harness(server: Running, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval.models.openai_completions")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    client = LocalCompletionsAPI(
        model="lawyer", base_url=f"{server.url}/v1/completions", tokenizer_backend="remote", batch_size=2, max_length=64
    )
    pairs = [(CONTEXT, CONTINUATION), ("rivers", " run"), ("", "a")]
    requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]
    found = client.loglikelihood(requests, disable_tqdm=True)
    model, tokenizer = load_model(server.base), byte_tokenizer()
    load_adapter(model, server.library / "lawyer")
    for (context, continuation), (value, is_greedy) in zip(pairs, found, strict=True):
        before, after = (tokenizer(text, add_special_tokens=False).input_ids for text in (context, continuation))
        before = before or [0]
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
        rows = logits[len(before) - 1 : -1]
        expected = rows.gather(1, torch.tensor(after)[:, None]).sum()
        assert math.isclose(value, float(expected), abs_tol=1e-3)
        assert is_greedy == (rows.argmax(-1).tolist() == after)
    until = Instance("generate_until", {}, (CONTEXT, {"until": ["\n"], "max_gen_toks": 6, "temperature": 0}), 0)
    assert len(client.generate_until([until], disable_tqdm=True)) == 1
