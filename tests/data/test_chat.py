"""The loss covers what the model must generate in a conversation, for every kind of chat template."""

from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest

from tests.data.chat_templates import MARKED_THINKING, SHAPES, TOOLS, Shape, tokenizer_of
from tests.errors import assert_refused, refused
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


def conversation(*turns: tuple[str, str] | Message) -> Conversation:
    messages = (turn if isinstance(turn, Message) else Message(*turn) for turn in turns)
    return Conversation(tuple(messages), "talk.jsonl:1")


def talk(shape: Shape) -> Conversation:
    return conversation(*(turn for turn in TALK if turn[0] in shape.roles))


ANSWERED = [("user", "a"), ("assistant", "b")]
TWICE = [*ANSWERED, ("user", "c"), ("assistant", "d")]


def target_runs(encoded: EncodedRecord) -> list[tuple[int, list[int]]]:
    """(position, token ids) of each sequence of tokens that count in the loss."""
    groups = groupby(range(len(encoded.ids)), key=encoded.loss_mask.__getitem__)
    runs = [list(indices) for learned, indices in groups if learned]
    return [(run[0], [encoded.ids[index] for index in run]) for run in runs]


def learned(tokenizer: Any, record: Any, turns: AssistantTurns = "all") -> list[str]:
    """The texts that count in the loss."""
    (encoded,) = encode_records(tokenizer, [record], turns)
    return [tokenizer.decode(ids) for _, ids in target_runs(encoded)]


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
        assert tokenizer.decode(ids) == shape.turn(record.messages[index].content)
        assert [place for place, token in enumerate(ids) if token == end] == [len(ids) - 1]
        before = [{"role": message.role, "content": message.content} for message in record.messages[:index]]
        prompt = tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        assert encoded.ids[:start] == tokenizer(prompt, add_special_tokens=False).input_ids


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
    unlearned = conversation(("user", "a"), Message("assistant", "b", in_loss=False))
    assert render(template, unlearned, "all").spans == ()
    assert render(template, unlearned, "last").spans == ()
    whole = render(template, conversation(*TWICE[:3]), "all")
    assert whole == render(template, conversation(*ANSWERED), "all")


@pytest.mark.parametrize("content", ["a ", "\na\n", "a\n\n", "b"])
@pytest.mark.parametrize("name", ["chatml", "llama 3", "chatml, marks without the end", "plain text"])
def test_white_space_at_the_edges_of_an_answer(name: str, content: str):
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    shown = content.strip() if name == "llama 3" else content
    assert learned(tokenizer, conversation(("user", "x"), ("assistant", content))) == [shape.turn(shown)]


def test_reasoning_in_the_last_turn_counts_and_in_earlier_turns_is_an_error():
    thoughtful = [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), *TWICE[2:]]
    tokenizer = tokenizer_of(SHAPES["qwen 3"])
    assert learned(tokenizer, conversation(*thoughtful[:2])) == ["<think>\nhm\n</think>\n\nb<|im_end|>"]
    assert_refused(r"talk.jsonl:1: turn 2 .*\(assistant_turns: last\)", learned, tokenizer, conversation(*thoughtful))
    tokenizer.chat_template = MARKED_THINKING
    assert learned(tokenizer, conversation(*thoughtful)) == ["b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]


def test_template_text_after_an_answer_does_not_count():
    """The text that a template adds after an answer can be equal to the answer."""
    shape = Shape(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == 'assistant' %} end end"
        "{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    record = conversation(("user", "end end"), ("assistant", "the end"))
    assert learned(tokenizer_of(shape), record) == ["the end end end<|endoftext|>"]


def test_an_added_token_that_is_not_special_ends_the_turn():
    tokenizer = tokenizer_of(Shape(SHAPES["chatml"].template))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "\n"])
    assert learned(tokenizer, conversation(*ANSWERED)) == ["b<|im_end|>"]
    with refused(r"talk.jsonl:1 .*<\|im_end\|>"):
        learned(tokenizer, conversation(("user", "a"), ("assistant", "b<|im_end|>c")))


CHATML = SHAPES["chatml"].template
REFUSED = {
    "a special token in an answer": (
        CHATML, [("user", "a"), ("assistant", "b<|im_end|>")],
        r"turn 2 \(assistant\) contains <\|im_end\|>, which is a special token",
    ),
    "a special token in a question": (
        CHATML, [("user", "a<|im_end|>"), ("assistant", "b")],
        r"turn 1 \(user\) contains <\|im_end\|>, which is a special token",
    ),
    "roles that the template refuses": (
        SHAPES["gemma"].template, [("system", "a"), *ANSWERED], r".*chat template .*roles must alternate"
    ),
    "a template that is broken": ("{% for m in messages %}", ANSWERED, r".*chat template .*endfor"),
    "an earlier turn without end": (
        SHAPES["plain text"].template, TWICE, r"turn 2 .*special token.* \(assistant_turns: last\)"
    ),
    "an earlier turn without end, in marks": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}A:"
        "{% generation %}{{ m['content'] }}{% endgeneration %}"
        "\n{% else %}<|im_start|>{{ m['content'] }}\n{% endif %}{% endfor %}",
        TWICE, r"turn 2 .*special token.* \(assistant_turns: last\)",
    ),
    "an end that only the last turn has, in marks": (
        "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}{% if loop.last %}<|im_end|>{% endif %}{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}",
        TWICE, r"turn 2 .*more turns follow",
    ),
    "a prompt that is not how an answer begins": (
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:<think>{% endif %}",
        ANSWERED, r"turn 2: .*generation prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_conversations_that_cannot_be_trained_are_errors(case: str):
    template, turns, fact = REFUSED[case]
    tokenizer = tokenizer_of(Shape(template, ("<|im_start|>", "<|im_end|>")))
    assert_refused(r"^talk.jsonl:1: " + fact, encode_records, tokenizer, [conversation(*turns)], "all")


@pytest.mark.parametrize(
    ("attribute", "value", "fact"),
    [
        ("chat_template", None, "talk.jsonl:1 .*chat template"),
        ("chat_template", {"tool_use": "x"}, "chat template"),
        ("eos_token", None, "talk.jsonl:1: turn 2 "),
    ],
)
def test_a_tokenizer_without_template_or_without_end(attribute: str, value: Any, fact: str):
    tokenizer = tokenizer_of(SHAPES["plain text"])
    setattr(tokenizer, attribute, value)
    assert_refused(fact, learned, tokenizer, conversation(*ANSWERED))


def test_a_template_that_fails_is_an_error_of_one_line():
    for template in (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{" + "(" * 5000 + ")" * 5000 + "}}",
        "{{ raise_exception('a\n' * 9999) }}",
        "{{ 'a' * 10_000_001 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
    ):
        tokenizer = tokenizer_of(Shape(template))
        with refused("^a prompt: ") as caught:
            prompt_text(read_template(tokenizer, ""), [{"role": "user", "content": "a"}])
        assert len(str(caught.value)) < 500
    assert_refused("1,000,000", read_template, tokenizer_of(Shape("{# #}" * 200_001)), "")


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


def called(row: dict[str, Any]) -> Conversation:
    record = read_row(row, "talk.jsonl:1")
    assert isinstance(record, Conversation)
    return record


@pytest.mark.parametrize("turns", ["all", "last"])
def test_calls_of_tools_are_learned_and_their_results_are_not(turns: AssistantTurns):
    tokenizer, record = tokenizer_of(TOOLS), called({"messages": CALLED, "tools": [WEATHER]})
    assert learned(tokenizer, record, turns) == (CALLS if turns == "all" else CALLS[-1:])
    theirs = tokenizer.apply_chat_template([message.fields for message in record.messages], [WEATHER], tokenize=False)
    assert tokenizer.decode(encode_records(tokenizer, [record], turns)[0].ids) == theirs
    assert all(text in target_text(record, "all") for text in ("I look.", "京都", "奈良", "No."))


def test_a_template_that_leaves_out_tools_is_an_error():
    rows = {"tools": {"messages": CALLED[:4], "tools": [WEATHER]}, "tool_calls": {"messages": CALLED[:2]}}
    for name, row in rows.items():
        assert_refused(f"talk.jsonl:1 has {name}, ", encode_records, tokenizer_of(SHAPES["zephyr"]), [called(row)])


def test_special_tokens_in_a_call_are_errors():
    function = {"name": "weather", "arguments": {"city": "a<|im_end|>b"}}
    turns = [CALLED[0], {"role": "assistant", "tool_calls": [{"function": function}]}]
    with refused(r"turn 2 \(assistant\) contains <\|im_end\|>"):
        learned(tokenizer_of(TOOLS), called({"messages": turns}))


def test_auto_keeps_a_template_and_gives_a_plain_one_where_there_is_none():
    for own in (None, SHAPES["chatml"].template):
        tokenizer = SimpleNamespace(chat_template=own)
        use_template(tokenizer, "auto")  # type: ignore[arg-type]
        assert tokenizer.chat_template == (own or DEFAULT_TEMPLATE)
