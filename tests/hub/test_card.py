"""The card of an adapter: its metadata read back by huggingface_hub, its page by a Markdown parser."""

import math
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.report.pages import evaluation, record
from tsugiki import LoraConfig
from tsugiki.adapters import BaseReference, Provenance
from tsugiki.hub import CardData, is_own_card, model_card
from tsugiki.language import speaking
from tsugiki.methods import BottleneckConfig

AWKWARD = [
    "```\n# not a heading\n```",
    "````\n~~~\n---\n",
    "<script>alert(1)</script> <!-- and on",
    "| a | b |\n|---|---|",
    "---\nlicense: mit\n---\n",
    "\x00\x1b[31m\r\nend\u2028of line \ud800",
    "$$x$$ [a](javascript:1) ![b](c) &lt; \\",
    "    indented\n\n\n> quoted\n1. item",
    "{{ config }} {% raw %}",
    "",
]


def described(**changed: Any) -> CardData:
    fields: dict[str, Any] = {
        "repo_id": "me/soseki",
        "config": LoraConfig(r=32, target_modules=["q_proj"]),
        "fields": {"peft_type": "LORA", "task_type": "CAUSAL_LM"},
        "base": BaseReference(name="them/base-7b", fingerprint="sha256:123"),
        "provenance": None,
        "record": record(),
        "parameters": 1234,
        "size": 4936,
        "license_id": "apache-2.0",
        "languages": ["ja"],
    }
    return CardData(**{**fields, **changed})


def page_of(card: str) -> str:
    return ModelCard(card).text


def tokens(card: str) -> list[Any]:
    return MarkdownIt("commonmark").enable("table").parse(page_of(card))


def code_of(card: str) -> list[str]:
    return [token.content for token in tokens(card) if token.type == "fence"]


def headings(card: str) -> list[str]:
    parsed = tokens(card)
    return [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open"]


def test_the_metadata_are_read_back():
    data = ModelCard(model_card(described())).data
    assert (data.base_model, data.base_model_relation, data.license) == ("them/base-7b", "adapter", "apache-2.0")
    assert (data.library_name, data.pipeline_tag, data.language) == ("peft", "text-generation", ["ja"])
    assert data.tags == ["lora", "tsugiki"]
    assert data.model_name == "soseki"
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    expected = {"loss": 4.9, "bits_per_char": 4.9 * 100 / 160 / math.log(2), "perplexity": math.exp(4.9)}
    assert figures == pytest.approx(expected, rel=1e-3)


def test_the_page_tells_the_run():
    card = model_card(described())
    of_run = ["Samples", "Result", "Held-out text and loss", "Data", "Model and method", "Settings", "Machine"]
    assert headings(card) == ["soseki", *of_run, "Adapter", "Usage", "Licence"]
    page = page_of(card)
    (low, high), _, (least, most) = (entry.loss_interval for entry in record().evaluations if entry.loss_interval)
    assert f"| loss | 5.600 [{low:.3f}, {high:.3f}] | 4.900 [{least:.3f}, {most:.3f}] | -12.5% |" in page
    assert f"| perplexity | {math.exp(5.6):.1f} [" in page
    assert "In brackets: 95 %" in page
    assert "On 12 texts that it has not seen, the adapter needs 12.5 % fewer bits per character (95 % interval" in page
    assert "`sha256:123`" in page
    assert [text[:2] for text in code_of(card)[:2]] == ["0輪", "40"]
    assert 'PeftModel.from_pretrained(model, "me/soseki")' in page
    assert "llama-cli -m base.gguf --lora soseki.gguf" in page


@pytest.mark.parametrize("text", AWKWARD)
def test_what_a_model_wrote_stays_in_its_block(text: str):
    valid = text.encode(errors="replace").decode()  # a record has no half surrogate pairs
    samples = [{"step": step, "prompt": valid, "text": valid} for step in (0, 40)]
    evaluations = [evaluation(0, 5.6), {**evaluation(40, 4.9), "warning": valid}]
    odd = record(samples=samples, config={"data": valid}, evaluations=evaluations)
    assert odd.machine is not None
    odd.machine.processor = valid
    provenance = Provenance(operation="test", settings={text or "made": text})
    card = model_card(described(record=odd, provenance=provenance, license_id=None))
    plain = model_card(described(license_id=None))
    assert headings(card) == headings(plain)
    assert ModelCard(card).data.to_dict() == ModelCard(plain).data.to_dict()
    parsed = tokens(card)
    assert sum(token.type == "html_block" for token in parsed) == 1  # the seal
    assert not any(child.type in ("html_inline", "image") for token in parsed for child in token.children or ())
    assert sum(token.type == "table_open" for token in parsed) == 1
    assert is_own_card(card)
    shown = code_of(card)[0]
    assert "\x1b" not in card
    assert all(line in shown for line in text.splitlines() if line.isascii() and line.isprintable())


def test_the_language_of_the_card_does_not_depend_on_that_of_the_user():
    english, japanese = model_card(described()), model_card(described(), "ja")
    with speaking("ja"):
        assert (model_card(described()), model_card(described(), "ja")) == (english, japanese)
    prose = re.sub(r"(?s)```.*?```|`[^`]*`|<!--.*", "", page_of(japanese))
    english_lines = [line for line in prose.splitlines() if re.search("[a-z]{3}", line) and line.isascii()]
    assert english_lines == ["# soseki", "- Python: "]
    assert not re.search("[ぁ-ん]", re.sub(r"(?s)```.*?```|`[^`]*`", "", page_of(english)))


def test_the_language_of_samples_with_kana_is_japanese():
    assert ModelCard(model_card(described(languages=()))).data.language == ["ja"]


def test_a_card_that_was_edited_is_not_its_own():
    card = model_card(described())
    assert is_own_card(card)
    assert is_own_card(card.replace("\n", "\r\n"))  # as an editor in a browser sends it
    for other in (card.replace("apache-2.0", "mit"), card + "\nMore.\n", "# mine\n", ""):
        assert not is_own_card(other)


def test_methods_that_peft_has_not():
    card = model_card(described(config=BottleneckConfig(), fields={"peft_type": "TSUGIKI_BOTTLENECK"}))
    data, page = ModelCard(card).data, page_of(card)
    assert (data.library_name, data.tags) == ("tsugiki", ["tsugiki"])
    assert "PEFT does not have this method" in page
    assert not re.search("PeftModel|llama-cli|tsugiki merge", page)  # nor can it be merged


def test_what_is_not_known_is_not_said():
    base = BaseReference(name=None, fingerprint=None)
    card = model_card(described(record=None, base=base, license_id=None, languages=[]))
    data = ModelCard(card).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language", "model-index"} & set(data)
    assert headings(card) == ["soseki", "Adapter", "Usage", "Licence"]
    assert "a base that is not on the hub" in page_of(card)
    assert "not chosen a licence" in page_of(card)
    assert "None" not in page_of(card)


def test_the_embedded_base_is_no_repository():
    card = model_card(described(base=BaseReference(name="embedded", fingerprint="sha256:123")))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert 'load_model("embedded")' in page_of(card)
