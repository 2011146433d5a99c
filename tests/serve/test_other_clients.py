"""Clients that others wrote call tools and get JSON of a schema, streamed and not; `-s` prints a transcript.

Each is skipped where it is not installed: pip install openai instructor langchain-openai llm, and litellm in an
environment of its own.
"""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from tests.serve.calling_model import ASK, save_calling_model
from tests.serve.conftest import Running, start

pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow
PARAMETERS = {"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Rain?", "parameters": PARAMETERS}}
"""As llm sends a function."""
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = ("weather", {"city": "Kyoto"})


class City(BaseModel):
    """The city that is asked for."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Kyoto", "Nara"]


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose base calls this tool."""
    home = tmp_path_factory.mktemp("caller")
    with start(save_calling_model(home / "base", tool=WEATHER), home) as served:
        yield served


def say(client: str, what: str, found: Any) -> None:
    print(f"{client} | {what} | {found}")


def called(function: Any) -> tuple[str, Any]:
    return function.name, json.loads(function.arguments)


def put_together(chunks: Any) -> tuple[str, Any]:
    """The only call in a stream of OpenAI's chunks."""
    parts = [call.function for chunk in chunks for one in chunk.choices for call in one.delta.tool_calls or []]
    return parts[0].name, json.loads("".join(part.arguments or "" for part in parts))


@pytest.mark.parametrize("client", ["openai", "litellm"])
def test_openai_and_litellm(client: str, caller: Running):
    package = pytest.importorskip(client)
    fields: dict[str, Any] = {"messages": [ASK], "temperature": 0, "max_tokens": 100}
    if client == "openai":
        create: Callable[..., Any] = package.OpenAI(base_url=f"{caller.url}/v1", api_key="-").chat.completions.create
        fields["model"] = "base"
    else:
        create = package.completion
        fields |= {"model": "openai/base", "api_base": f"{caller.url}/v1", "api_key": "-"}
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": City.model_json_schema()}}
    for choice in ({}, {"tool_choice": NAMED}):
        asked = {**fields, "tools": [WEATHER], **choice}
        (call,) = create(**asked).choices[0].message.tool_calls
        streamed = put_together(create(stream=True, **asked))
        say(client, f"tools {choice}", (called(call.function), streamed))
        assert called(call.function) == CALL if not choice else called(call.function)[0] == "weather"
        assert streamed == called(call.function)
    text = create(response_format=form, **fields).choices[0].message.content
    parts = create(response_format=form, stream=True, **fields)
    streamed = "".join(one.delta.content or "" for chunk in parts for one in chunk.choices)
    say(client, "json_schema", (text, streamed))
    assert City.model_validate_json(text) == City.model_validate_json(streamed)


def test_instructor(caller: Running):
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    client = instructor.from_openai(openai.OpenAI(base_url=f"{caller.url}/v1", api_key="-"))  # its default mode: tools
    fields = {"model": "base", "messages": [ASK], "temperature": 0, "max_tokens": 100, "max_retries": 0}
    whole = client.chat.completions.create(response_model=City, **fields)
    parts = [*client.chat.completions.create_partial(response_model=City, **fields)]
    say("instructor", "default mode", (whole, parts[-1]))
    assert isinstance(whole, City)
    assert City.model_validate(parts[-1].model_dump())  # its tool has another name, which the model sees


def test_langchain(caller: Running):
    langchain = pytest.importorskip("langchain_openai")
    chat = langchain.ChatOpenAI(base_url=f"{caller.url}/v1", api_key="-", model="base", temperature=0, max_tokens=100)
    city = chat.with_structured_output(City, method="function_calling")
    whole, parts = city.invoke(ASK["content"]), [*city.stream(ASK["content"])]
    assert isinstance(chat.with_structured_output(City).invoke(ASK["content"]), City)  # by its schema
    bound = chat.bind_tools([WEATHER])
    (call,) = bound.invoke(ASK["content"]).tool_calls
    first, *others = bound.stream(ASK["content"])
    for part in others:
        first += part
    say("langchain-openai", "function_calling", (whole, parts[-1]))
    say("langchain-openai", "bind_tools", ((call["name"], call["args"]), first.tool_calls))
    assert parts[-1] == whole
    assert isinstance(whole, City)
    assert (call["name"], call["args"]) == CALL
    assert [(one["name"], one["args"]) for one in first.tool_calls] == [CALL]


@pytest.mark.parametrize("stream", [True, False])
def test_llm(stream: bool, caller: Running, tmp_path: Path):
    program = which("llm")
    if program is None:
        pytest.skip("llm is not installed")
    lines = ["- model_id: tiny", "  model_name: base", f"  api_base: {caller.url}/v1", "  supports_tools: true"]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
    function = 'def weather(city: str) -> str:\n    """Rain?"""\n    return "dry"\n'
    command = [program, "-m", "tiny", "--functions", function, "--td", *([] if stream else ["--no-stream"])]
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "-"}
    environment.pop("PYTHONPATH", None)
    command += ["-o", "temperature", "0", ASK["content"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    say("llm", "--functions" + (", streamed" if stream else ""), (done.stdout, done.stderr))
    assert (done.returncode, done.stdout.strip()) == (0, "No.")
    assert "weather({'city': 'Kyoto'})" in done.stderr
