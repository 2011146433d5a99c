"""Foreign text in Markdown, read back by a parser."""

import pytest
from markdown_it import MarkdownIt

from tsugiki.hub import code_span, fenced

TEXTS = [
    "plain",
    "`",
    "``a` b",
    "`one` ``two``",
    " spaced  out ",
    "a\nb",
    "<b>&amp;",
    "*x* _y_ [z](w) | \\",
    "```\n````",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_span_is_the_text_in_one_line(text: str):
    (_, paragraph, _) = MarkdownIt().parse(f"before {code_span(text)} after")
    kinds = [child.type for child in paragraph.children]
    assert kinds == ["text", "code_inline", "text"]
    assert paragraph.children[1].content == " ".join(text.split())


@pytest.mark.parametrize("text", TEXTS)
def test_a_block_is_the_text(text: str):
    (block,) = MarkdownIt().parse(fenced(text, "text"))
    assert (block.type, block.info, block.content) == ("fence", "text", f"{text}\n")


def test_control_characters_are_replaced():
    assert fenced("a\r\nb\x1b[0m\ud800") == "```\na\nb\N{REPLACEMENT CHARACTER}[0m\N{REPLACEMENT CHARACTER}\n```"
