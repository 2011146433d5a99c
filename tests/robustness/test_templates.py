"""Mutated chat templates render conversations, or are refused in one line."""

import random
from pathlib import Path

import pytest

from tests.data.chat_templates import SHAPES, tokenizer_of
from tests.robustness.mutations import mutate_bytes
from tsugiki.data import Conversation, Message, prompt_text, read_template, render

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

PIECES = [
    piece.encode()
    for piece in (
        *("{% for m in messages %}", "{% endfor %}", "{% for m in messages recursive %}", "{{ loop(messages) }}"),
        *(
            "{% if m['role'] == 'user' %}",
            "{% else %}",
            "{% endif %}",
            "{% break %}",
            "{{",
            "}}",
            "{#",
            "#}",
            "|",
            "\n",
        ),
        *("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ '%9999d' % 1 }}", "{{ range(10**9) | list }}"),
        *("{{ ''.__class__ }}", "{{ m.__init__.__globals__ }}", "{{ raise_exception('no\nno') }}", "{{ undefined.x }}"),
        *("{% generation %}", "{% endgeneration %}", "{{ strftime_now('%Y' * 999) }}", "{% include 'x' %}"),
        *("{{ m.content | replace('', m.content) }}", "{{ namespace(a=1) }}", "<|im_end|>", "{{ eos_token }}"),
        *("{% if add_generation_prompt %}", "(" * 300, "[" * 300, "not " * 300, "-" * 300),
    )
]
TURNS = (
    *(Message("user", "庭の梅は？"), Message("assistant", "咲いた。")),
    *(Message("user", "a"), Message("assistant", "b " * 99 + "c")),
)
TOKENIZERS = {name: tokenizer_of(shape) for name, shape in SHAPES.items()}


def read(rng: random.Random, folder: Path) -> None:
    """Find the answers of a conversation, and render a prompt."""
    tokenizer = TOKENIZERS[name := rng.choice(list(SHAPES))]
    data = SHAPES[name].template.encode()
    tokenizer.chat_template = mutate_bytes(rng, data, PIECES).decode("utf-8", "replace")
    template = read_template(tokenizer, "talk.jsonl:1")
    turns = TURNS[: rng.choice((2, 4))]
    if rng.random() < 0.3:
        prompt_text(template, [{"role": turn.role, "content": turn.content} for turn in turns[:-1]])
    found = render(template, Conversation(turns, "talk.jsonl:1"), rng.choice(("all", "last")))
    assert all(0 <= start < stop <= len(found.text) for start, stop in found.spans)


def test_some_mutations(tmp_path: Path):
    harness.check("chat templates", read, 20, tmp_path / "case")


@pytest.mark.slow
def test_many_mutations(tmp_path: Path):
    harness.check("chat templates", read, harness.LONG, tmp_path / "case")


READERS = {"chat templates": read}
