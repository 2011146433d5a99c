"""Clients that nobody here wrote: curl, LangChain and the language model evaluation harness."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.serve.conftest import Running

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
