"""`/metrics` in Prometheus' text format."""

import re
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from tests.serve.conftest import Running, save_adapter_of
from tsugiki import load_adapter
from tsugiki.base import load_model
from tsugiki.generation import BLOCK, Timing

pytest.importorskip("starlette")
from tsugiki.serve import Metrics

LINE = re.compile(r'[a-z_]+:?[a-z_0-9]+(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? [0-9.e+-]+')


def values(text: str) -> dict[str, float]:
    """The samples by name and labels; each line must be well-formed."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            assert LINE.fullmatch(line), line
            name, _space, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def test_times_are_in_cumulative_buckets():
    metrics, timing = Metrics(), Timing('a"b\\c')
    metrics.begun(timing, 7)
    metrics.begun(timing, 7)
    for _ in range(3):
        metrics.token(timing)
    metrics.ended(timing, "stop")
    metrics.ended(timing, "abort")
    found = values(metrics.text().decode())
    label = r'model_name="a\"b\\c"'
    assert found[f"vllm:prompt_tokens_total{{{label}}}"] == 7
    assert found[f"vllm:generation_tokens_total{{{label}}}"] == 3
    assert found[f'vllm:request_success_total{{finished_reason="stop",{label}}}'] == 1
    assert not any("abort" in name for name in found)
    buckets = [value for name, value in found.items() if name.startswith("vllm:inter_token_latency_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == found[f"vllm:inter_token_latency_seconds_count{{{label}}}"] == 2
    assert found[f"vllm:time_to_first_token_seconds_count{{{label}}}"] == 1


def test_requests_are_counted_by_adapter(server: Running):
    pytest.importorskip("starlette")

    def ask(**fields: Any) -> int:
        body = {"model": "lawyer", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, **fields}
        return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code

    assert ask() == 200
    before = values(httpx2.get(f"{server.url}/metrics").text)
    assert (ask(), ask(n=2)) == (200, 200)
    server.engine.call(lambda: None).result()  # after the step that delivered the last token
    answer = httpx2.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = values(answer.text)
    label = '{model_name="lawyer"}'
    for name, more in (
        ("vllm:prompt_tokens_total", 9),
        ("vllm:generation_tokens_total", 12),
        ("vllm:time_to_first_token_seconds_count", 3),
        ("vllm:inter_token_latency_seconds_count", 9),
        ("vllm:e2e_request_latency_seconds_count", 3),
    ):
        assert after[name + label] - before[name + label] == more, name
    finished = 'vllm:request_success_total{finished_reason="length",model_name="lawyer"}'
    assert after[finished] - before[finished] == 3
    assert after['vllm:num_requests_running{model_name="base"}'] == 0
    assert after['tsugiki:kv_cache_bytes{model_name="base"}'] == 0
    assert any(name.startswith('vllm:lora_requests_info{max_lora="2"') for name in after)


@torch.no_grad()
def test_an_adapter_that_was_replaced_under_its_name_has_nothing_of_the_old_one(server: Running):
    prompt = list(range(1, 61))

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
