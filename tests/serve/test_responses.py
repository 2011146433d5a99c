"""`/v1/responses` by OpenAI's client: texts, forms and calls of tools, streamed and not."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.serve.asking import connect, openai
from tests.serve.calling_model import ASK, CALL, CITY
from tests.serve.conftest import Running
from tests.serve.test_clients import check_known

pytest.importorskip("llguidance")

FIELDS: dict[str, Any] = {"model": "base", "temperature": 0}
WEATHER = {"type": "function", "name": "weather", "description": "Rain?", "parameters": CITY}
NAMED = {"type": "function", "name": "weather"}
CALLED = [
    ASK,
    {"type": "function_call", "call_id": "1", "name": "weather", "arguments": CALL["function"]["arguments"]},
    {"type": "function_call_output", "call_id": "1", "output": "dry"},
]


class City(BaseModel):
    city: Literal["Kyoto", "Nara"]


def both(server: Running, **fields: Any) -> Any:
    """The answer as a whole, which a stream must end with; the parts of the stream add up to it."""
    client = connect(server)
    whole = client.responses.create(**FIELDS, **fields)
    check_known(whole)
    with client.responses.stream(**FIELDS, **fields) as stream:
        texts: dict[int, str] = {}
        for number, event in enumerate(stream):
            assert event.sequence_number == number
            if event.type.endswith(".delta"):
                texts[event.output_index] = texts.get(event.output_index, "") + event.delta
        final = event.response
    calls = [item.arguments for item in whole.output if item.type == "function_call"]
    assert [*texts.values()] == (calls or [item.content[0].text for item in whole.output])
    for name in ("output_text", "status"):
        assert getattr(final, name) == getattr(whole, name)
    assert final.usage.output_tokens == whole.usage.output_tokens
    return whole


def test_a_text_is_that_of_a_chat(caller: Running):
    turns = [{"role": "system", "content": "be"}, ASK]
    chat = connect(caller).chat.completions.create(**FIELDS, messages=turns, max_tokens=2)
    for asked in ({"input": ASK["content"], "instructions": "be"}, {"input": turns}):
        answer = both(caller, **asked, max_output_tokens=2)
        assert answer.output_text == chat.choices[0].message.content
        assert answer.usage.input_tokens == chat.usage.prompt_tokens
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_a_model_calls_a_tool_and_answers_by_its_result(caller: Running):
    (call,) = both(caller, input=[ASK], tools=[WEATHER]).output
    assert (call.type, call.name, call.arguments) == ("function_call", "weather", '{"city": "Kyoto"}')
    assert both(caller, input=CALLED, tools=[WEATHER]).output_text == "No."
    (call,) = both(caller, input="hm", tools=[WEATHER], tool_choice=NAMED).output
    assert City.model_validate_json(call.arguments)


def test_a_form(caller: Running):
    answer = connect(caller).responses.parse(**FIELDS, input="hm", text_format=City)
    assert isinstance(answer.output_parsed, City)


@pytest.mark.parametrize(
    ("name", "fields", "fact"),
    [
        ("input", {"input": 5}, "a list of items"),
        ("input", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "a list of items"),
        ("previous_response_id", {"input": "a", "previous_response_id": "resp_1"}, "not supported"),
        ("model", {"input": "a", "model": "poet"}, "no model or adapter is called 'poet'"),
    ],
)
def test_what_is_refused(caller: Running, name: str, fields: dict[str, Any], fact: str):
    with pytest.raises(openai.APIStatusError, match=fact) as caught:
        connect(caller).responses.create(**{**FIELDS, **fields})
    assert caught.value.param == name
