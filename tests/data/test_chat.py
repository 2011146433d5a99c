"""The loss covers what the model must generate in a conversation, for every kind of chat template."""

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.chat_templates import MARKED_THINKING, SHAPES, TOOLS, Shape, tokenizer_of
from tsugiki import TsugikiError
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    AssistantTurns,
    Conversation,
    EncodedRecord,
    Message,
    encode_records,
    prompt_text,
    read_row,
    read_template,
    render,
    target_text,
)
from tsugiki.data.chat import use_template

TALK = (
    ("system", "Answer in one line."),
    ("user", "What is an answer?"),
    ("assistant", "An answer: what is fact back."),
    ("user", "花の名は?"),
    ("assistant", "梅です。\nuser"),
    ("user", "And?"),
    ("assistant", "a"),
)


def conversation(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), "talk.jsonl:1")


def talk(shape: Shape) -> Conversation:
    return conversation(*(turn for turn in TALK if turn[0] in shape.roles))


def target_runs(encoded: EncodedRecord) -> list[tuple[int, list[int]]]:
    """(position, token ids) of each sequence of tokens that count in the loss."""
    runs = []
    for learned, group in groupby(range(len(encoded.ids)), key=lambda index: encoded.loss_mask[index]):
        indices = list(group)
        if learned:
            runs.append((indices[0], [encoded.ids[index] for index in indices]))
    return runs


def prompt_ids(tokenizer: Any, record: Conversation, index: int) -> list[int]:
    """The token ids from which generation starts."""
    turns = [{"role": message.role, "content": message.content} for message in record.messages[:index]]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


CASES = [(name, turns, turns == "last") for name, shape in SHAPES.items() for turns in shape.turns]
"""Of the two cases of most templates, the padding token is the end token in one."""


@pytest.mark.parametrize(("name", "turns", "pad"), CASES)
def test_targets_are_what_the_model_generates_after_the_prompt(name: str, turns: AssistantTurns, pad: bool):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape, pad)
    record = talk(shape)
    (encoded,) = encode_records(tokenizer, [record], turns)
    answers = [index for index, message in enumerate(record.messages) if message.role == "assistant"]
    answers = answers if turns == "all" else answers[-1:]
    runs = target_runs(encoded)
    assert len(runs) == len(answers)
    end = tokenizer.convert_tokens_to_ids(shape.end)
    for (start, ids), index in zip(runs, answers, strict=True):
        assert tokenizer.decode(ids) == shape.written.replace("{}", record.messages[index].content)
        assert [place for place, token in enumerate(ids) if token == end] == [len(ids) - 1]
        assert encoded.ids[:start] == prompt_ids(tokenizer, record, index)


@pytest.mark.parametrize("name", [name for name in SHAPES if "marks" in name])
def test_generation_marks_are_used_as_in_transformers(name: str):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    record = talk(shape)
    (encoded,) = encode_records(tokenizer, [record], "all")
    theirs = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in record.messages],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    assert encoded.ids == theirs["input_ids"]
    end, line = tokenizer.convert_tokens_to_ids(shape.end), tokenizer("\n").input_ids[0]
    differing = {
        encoded.ids[i] for i, mask in enumerate(theirs["assistant_masks"]) if bool(mask) != encoded.loss_mask[i]
    }
    assert differing <= {end, line}, "only where the turn ends"


@pytest.mark.parametrize("name", SHAPES)
def test_a_turn_of_weight_zero_and_text_after_the_last_answer_do_not_count(name: str):
    shape = SHAPES[name]
    template = read_template(tokenizer_of(shape), "")
    unlearned = Conversation((Message("user", "a"), Message("assistant", "b", in_loss=False)), "talk.jsonl:1")
    assert render(template, unlearned, "all").spans == ()
    assert render(template, unlearned, "last").spans == ()
    whole = render(template, conversation(("user", "a"), ("assistant", "b"), ("user", "c")), "all")
    assert whole == render(template, conversation(("user", "a"), ("assistant", "b")), "all")


def test_one_of_two_answers_has_weight_zero():
    tokenizer = tokenizer_of(SHAPES["chatml"])
    first, second = Message("assistant", "one", in_loss=False), Message("assistant", "two")
    record = Conversation((Message("user", "a"), first, Message("user", "b"), second), "talk.jsonl:1")
    (encoded,) = encode_records(tokenizer, [record], "all")
    assert [tokenizer.decode(ids) for _, ids in target_runs(encoded)] == ["two<|im_end|>"]
    assert "one" in tokenizer.decode(encoded.ids)


@pytest.mark.parametrize("content", ["a ", "\na\n", "a\n\n", "b"])
@pytest.mark.parametrize("name", ["chatml", "llama 3", "chatml, marks without the end", "plain text"])
def test_white_space_at_the_edges_of_an_answer(name: str, content: str):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    (encoded,) = encode_records(tokenizer, [conversation(("user", "x"), ("assistant", content))], "all")
    ((_, ids),) = target_runs(encoded)
    shown = content.strip() if name == "llama 3" else content
    assert tokenizer.decode(ids) == shape.written.replace("{}", shown)


def test_reasoning_in_the_last_turn_counts_and_in_earlier_turns_is_an_error():
    shape = SHAPES["qwen 3"]
    tokenizer = tokenizer_of(shape)
    thoughtful = conversation(("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"))
    (encoded,) = encode_records(tokenizer, [thoughtful], "all")
    ((_, ids),) = target_runs(encoded)
    assert tokenizer.decode(ids) == "<think>\nhm\n</think>\n\nb<|im_end|>"
    with pytest.raises(TsugikiError, match=r"talk.jsonl:1: turn 2 .*\(assistant_turns: last\)"):
        encode_records(tokenizer, [conversation(*thoughtful_turns())], "all")
    tokenizer.chat_template = MARKED_THINKING
    (encoded,) = encode_records(tokenizer, [conversation(*thoughtful_turns())], "all")
    written = ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]
    assert [tokenizer.decode(ids) for _, ids in target_runs(encoded)] == written


def thoughtful_turns() -> list[tuple[str, str]]:
    return [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"), ("assistant", "d")]


def test_template_text_after_an_answer_does_not_count():
    """The text that a template adds after an answer can be equal to the answer."""
    shape = Shape(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %} end end"
        "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        (),
        "<|endoftext|>",
        "{} end end<|endoftext|>",
    )
    tokenizer = tokenizer_of(shape)
    (encoded,) = encode_records(tokenizer, [conversation(("user", "end end"), ("assistant", "the end"))], "all")
    ((_, ids),) = target_runs(encoded)
    assert tokenizer.decode(ids) == "the end end end<|endoftext|>"


def test_an_added_token_that_is_not_special_ends_the_turn():
    tokenizer = tokenizer_of(Shape(SHAPES["chatml"].template, (), "", ""))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "\n"])
    record = conversation(("user", "a"), ("assistant", "b"))
    ((_, ids),) = target_runs(encode_records(tokenizer, [record], "all")[0])
    assert tokenizer.decode(ids) == "b<|im_end|>"
    with pytest.raises(TsugikiError, match=r"talk.jsonl:1 .*<\|im_end\|>"):
        encode_records(tokenizer, [conversation(("user", "a"), ("assistant", "b<|im_end|>c"))], "all")


REFUSED = {
    "a special token in an answer": (
        SHAPES["chatml"].template,
        [("user", "a"), ("assistant", "b<|im_end|>")],
        r"turn 2 \(assistant\) contains <\|im_end\|>, which is a special token",
    ),
    "a special token in a question": (
        SHAPES["chatml"].template,
        [("user", "a<|im_end|>"), ("assistant", "b")],
        r"turn 1 \(user\) contains <\|im_end\|>, which is a special token",
    ),
    "roles that the template refuses": (
        SHAPES["gemma"].template,
        [("system", "a"), ("user", "a"), ("assistant", "b")],
        r".*chat template .*roles must alternate",
    ),
    "a template that is broken": (
        "{% for m in messages %}",
        [("user", "a"), ("assistant", "b")],
        r".*chat template .*endfor",
    ),
    "a template that fails in its own way": (
        "{{ messages[0]['content'] + 1 }}",
        [("user", "a"), ("assistant", "b")],
        r".*chat template .*: ",
    ),
    "an earlier turn without end": (
        SHAPES["plain text"].template,
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        r"turn 2 .*special token.* \(assistant_turns: last\)",
    ),
    "an earlier turn without end, in marks": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}A:"
        "{% generation %}{{ m['content'] }}{% endgeneration %}"
        "\n{% else %}<|im_start|>{{ m['content'] }}\n{% endif %}{% endfor %}",
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        r"turn 2 .*special token.* \(assistant_turns: last\)",
    ),
    "an end that only the last turn has, in marks": (
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% if loop.last %}<|im_end|>{% endif %}{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}",
        [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        r"turn 2 .*more turns follow",
    ),
    "a prompt that is not how an answer begins": (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:<think>{% endif %}",
        [("user", "a"), ("assistant", "b")],
        r"turn 2: .*generation prompt",
    ),
    "a template that does not show answers": (
        "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
        [("user", "a"), ("assistant", "b")],
        r"turn 2: .*generation prompt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_conversations_that_cannot_be_trained_are_errors(case: str):
    template, turns, fact = REFUSED[case]
    tokenizer = tokenizer_of(Shape(template, ("<|im_start|>", "<|im_end|>"), "", ""))
    with pytest.raises(TsugikiError, match=r"^talk.jsonl:1: " + fact) as caught:
        encode_records(tokenizer, [conversation(*turns)], "all")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_template_or_without_end():
    tokenizer = tokenizer_of(SHAPES["plain text"])
    record = conversation(("user", "a"), ("assistant", "b"))
    tokenizer.chat_template = None
    with pytest.raises(TsugikiError, match="talk.jsonl:1 .*chat template"):
        encode_records(tokenizer, [record], "all")
    tokenizer.chat_template = {"tool_use": "x"}
    with pytest.raises(TsugikiError, match="chat template"):
        encode_records(tokenizer, [record], "all")
    tokenizer.chat_template = SHAPES["plain text"].template
    tokenizer.eos_token = None
    with pytest.raises(TsugikiError, match="talk.jsonl:1: turn 2 "):
        encode_records(tokenizer, [record], "all")


def test_a_template_that_fails_is_an_error_of_one_line():
    for template in (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{" + "(" * 5000 + ")" * 5000 + "}}",
        "{{ raise_exception('a\n' * 9999) }}",
        "{{ 'a' * 10_000_001 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
    ):
        tokenizer = tokenizer_of(Shape(template, (), "", ""))
        with pytest.raises(TsugikiError, match="^a prompt: ") as caught:
            prompt_text(read_template(tokenizer, ""), [{"role": "user", "content": "a"}])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500
    with pytest.raises(TsugikiError, match="1,000,000"):
        read_template(tokenizer_of(Shape("{# #}" * 200_001, (), "", "")), "")


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {}}}}}
CALLED = [
    {"role": "user", "content": "Will it rain?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "京都"}}},
            {"function": {"name": "weather", "arguments": '{"city": "奈良"}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "dry"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "And here?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
]
CALLS = [
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "京都"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "奈良"}}\n</tool_call><|im_end|>',
    "No.<|im_end|>",
    '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call><|im_end|>',
]


@pytest.mark.parametrize("turns", ["all", "last"])
def test_calls_of_tools_are_learned_and_their_results_are_not(turns: AssistantTurns):
    tokenizer = tokenizer_of(TOOLS)
    record = read_row({"messages": CALLED, "tools": [WEATHER]}, "talk.jsonl:1")
    assert isinstance(record, Conversation)
    (encoded,) = encode_records(tokenizer, [record], turns)
    assert [tokenizer.decode(ids) for _, ids in target_runs(encoded)] == (CALLS if turns == "all" else CALLS[-1:])
    theirs = [message.fields for message in record.messages]
    assert tokenizer.decode(encoded.ids) == tokenizer.apply_chat_template(theirs, [WEATHER], tokenize=False)
    assert all(text in target_text(record, "all") for text in ("I look.", "京都", "奈良", "No."))


@pytest.mark.parametrize(
    ("row", "name"),
    [({"messages": CALLED[:4], "tools": [WEATHER]}, "tools"), ({"messages": CALLED[:2]}, "tool_calls")],
)
def test_a_template_that_leaves_out_tools_is_an_error(row: dict[str, Any], name: str):
    record = read_row(row, "talk.jsonl:1")
    assert isinstance(record, Conversation)
    with pytest.raises(TsugikiError, match=f"talk.jsonl:1 has {name}, "):
        encode_records(tokenizer_of(SHAPES["zephyr"]), [record])


def test_special_tokens_in_a_call_are_errors():
    function = {"name": "weather", "arguments": {"city": "a<|im_end|>b"}}
    turns = [CALLED[0], {"role": "assistant", "tool_calls": [{"function": function}]}]
    record = read_row({"messages": turns}, "talk.jsonl:1")
    assert isinstance(record, Conversation)
    with pytest.raises(TsugikiError, match=r"turn 2 \(assistant\) contains <\|im_end\|>"):
        encode_records(tokenizer_of(TOOLS), [record])


def test_auto_keeps_a_template_and_gives_a_plain_one_where_there_is_none():
    for own in (None, SHAPES["chatml"].template):
        tokenizer = SimpleNamespace(chat_template=own)
        use_template(tokenizer, "auto")  # type: ignore[arg-type]
        assert tokenizer.chat_template == (own or DEFAULT_TEMPLATE)
