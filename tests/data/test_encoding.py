"""Token ids and loss masks of documents, completions and conversations, also mixed in one batch."""

from itertools import compress
from typing import Any

import pytest
import transformers
from tokenizers.processors import TemplateProcessing

from tests.data.chat_templates import SHAPES, Shape, tokenizer_of
from tests.errors import assert_refused, refused
from tests.tiny import byte_tokenizer
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    Completion,
    Conversation,
    Document,
    Message,
    Record,
    document_end,
    document_start,
    encode,
    encode_records,
)

TALK = Conversation((Message("user", "Say:"), Message("assistant", " Tea")), "talk.jsonl:1")


def merging_tokenizer(trim_offsets: bool = False, eos: str = "<|endoftext|>") -> Any:
    """Bytes with a few merges over borders: ` T`, `e `, two line feeds, `:` with a line feed, and the last byte of 花
    with the first of 梅."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    merges = [("e", "Ġ"), ("Ġ", "T"), ("Ċ", "Ċ"), (":", "Ċ"), ("±", "æ")]
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=eos)


def spaced_tokenizer() -> Any:
    """As in Llama 2: a space is added before a text, and ` a` and `a` are different tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = ["<unk>", "</s>", "▁", "\n", *"abcTea:", "▁a", "▁T", "▁b"]
    merges = [("▁", "a"), ("▁", "T"), ("▁", "b")]
    tokenizer = Tokenizer(models.BPE({s: i for i, s in enumerate(dict.fromkeys(symbols))}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def asked(tokenizer: Any, question: str) -> list[int]:
    """The token ids after which an answer to a question is generated."""
    turns = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])


def test_a_document_counts_whole_with_its_end_token():
    tokenizer = byte_tokenizer()
    first, second = encode_records(tokenizer, [Document("ab", ""), Document("猫", "")])
    a, b = encode(tokenizer, ["ab", "猫"])
    assert (first.ids, second.ids) == ([0, *a, 0], [0, *b, 0])
    assert first.loss_mask == [False, True, True, True]
    assert second.target_tokens == 4


def test_the_start_is_the_begin_token_if_the_tokenizer_adds_one():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    assert document_start(tokenizer) == document_end(tokenizer) == 0, "a begin token that is not used is not set"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    for row in encode_records(tokenizer, [Document("a", ""), Completion("a", "b", "")]):
        assert (row.ids[0], row.ids[-1], row.target_tokens) == (bos, 0, 2)


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        *(("Tea:", answer) for answer in ("Tea", " Tea", "\nTea", "\n\nT", "梅 T")),
        *(("", "Tea"), ("Tea: ", " Tea"), ("Tea:\n", "\nTea"), ("Tea \n\n", "\n\nT"), ("花", "梅 T")),
        *(("花: ", "梅 T"), ("Te", " Tea"), (" ", "Tea"), ("Tea: ", "Tea")),
    ],
)
@pytest.mark.parametrize("trim", [False, True], ids=["", "trimmed offsets"])
def test_no_token_spans_prompt_and_completion(prompt: str, completion: str, trim: bool):
    tokenizer = merging_tokenizer(trim)
    (row,) = encode_records(tokenizer, [Completion(prompt, completion, "a.jsonl:1")])
    asked = encode(tokenizer, [prompt])[0]
    assert row.ids[: len(asked) + 1] == [0, *asked], "as generation would begin"
    assert row.loss_mask == [False] * (len(asked) + 1) + [True] * (len(row.ids) - len(asked) - 1)
    assert tokenizer.decode(row.ids[len(asked) + 1 :]) == completion + "<|endoftext|>"
    whole = encode(tokenizer, [prompt + completion])[0]
    if whole[: len(asked)] == asked:
        assert row.ids == [0, *whole, 0], "not cut where it need not be"


@pytest.mark.parametrize("trim", [False, True], ids=["", "trimmed offsets"])
@pytest.mark.parametrize(
    ("header", "answer"),
    [("A: ", "Tea"), ("A:", "\nTea"), ("A:\n", "\nTea"), ("A:\n\n", "T T"), ("A:", "Tea\n\n")],
)
def test_no_token_spans_template_and_answer(header: str, answer: str, trim: bool):
    tokenizer = merging_tokenizer(trim)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}\n{% else %}"
        f"{header}{{{{ m['content'] }}}}{{{{ eos_token }}}}\n{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{header}{{% endif %}}"
    )
    turns = (Message("user", "x"), Message("assistant", answer), Message("user", "y"), Message("assistant", answer))
    (row,) = encode_records(tokenizer, [Conversation(turns, "talk.jsonl:1")])
    prompt = asked(tokenizer, "x")
    assert row.ids[: len(prompt)] == prompt
    assert row.loss_mask[: len(prompt)] == [False] * len(prompt)
    assert tokenizer.decode([*compress(row.ids, row.loss_mask)]) == (answer + "<|endoftext|>") * 2


def test_a_completion_is_a_conversation_where_there_is_a_template():
    tokenizer = byte_tokenizer()
    pair = Completion("Tea?", "Yes.", "a.jsonl:1", system="be kind")
    plain = encode_records(tokenizer, [pair])
    tokenizer.chat_template = DEFAULT_TEMPLATE
    turns = (Message("system", "be kind"), Message("user", "Tea?"), Message("assistant", "Yes."))
    assert encode_records(tokenizer, [pair]) == encode_records(tokenizer, [Conversation(turns, "a.jsonl:1")]) != plain


def test_no_space_is_added_where_a_text_is_split():
    tokenizer = spaced_tokenizer()
    (row,) = encode_records(tokenizer, [Completion("b: ", "a b", "a.jsonl:1")])
    tokens = tokenizer.convert_ids_to_tokens(row.ids)
    assert tokens == ["</s>", "▁b", ":", "▁", "a", "▁b", "</s>"]
    assert row.loss_mask == [False] * 4 + [True] * 3


def test_an_end_token_that_includes_the_line_feed_counts_once():
    from tokenizers import AddedToken

    shape = SHAPES["phi 3, an end of all after the last turn"]
    tokenizer = tokenizer_of(Shape(shape.template, (), shape.end))
    tokenizer.add_tokens([AddedToken(text, rstrip=True, special=True) for text in shape.special])
    (row,) = encode_records(tokenizer, [TALK])
    assert row.ids[: row.loss_mask.index(True)] == asked(tokenizer, "Say:")
    assert tokenizer.convert_ids_to_tokens([*compress(row.ids, row.loss_mask)]) == ["Ġ", "T", "e", "a", "<|end|>"]


def test_a_mixed_batch_keeps_its_order_and_an_end_token_is_refused_in_a_completion():
    tokenizer = tokenizer_of(SHAPES["zephyr"])
    records: list[Record] = [Document("a", ""), TALK, Completion("p", "c", ""), Document("b", "")]
    assert encode_records(tokenizer, records) == [encode_records(tokenizer, [record])[0] for record in records]
    with refused(r"a.jsonl:4 .*<\|endoftext\|>"):
        encode_records(byte_tokenizer(), [Completion("a", "b<|endoftext|>", "a.jsonl:4")])
    (row,) = encode_records(byte_tokenizer(), [Completion("a<|endoftext|>", "b", "a.jsonl:4")])
    assert row.target_tokens == 2, "a prompt may"


def test_tokenizers_that_cannot_be_used():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    assert_refused("no end token", encode_records, tokenizer, [Document("a", "")])

    class Slow(transformers.PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    assert_refused("character offsets", encode_records, Slow(eos_token="a"), [Completion("a", "b", "")])


def test_many_turns_take_bounded_time():
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    turns = tuple(Message(("user", "assistant")[number % 2], "a") for number in range(3_000))
    (record,) = encode_records(tokenizer, [Conversation(turns[:100], "talk.jsonl:1")])
    assert record.target_tokens == 2 * 50
    (record,) = encode_records(tokenizer, [Conversation(turns, "talk.jsonl:1")], "last")
    assert record.target_tokens == 2
    with refused(r"talk.jsonl:1 has 3,000 turns.*1,000"):
        encode_records(tokenizer, [Conversation(turns, "talk.jsonl:1")])
