"""The card of an adapter: its metadata read back by huggingface_hub, its page by a Markdown parser."""

import math
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.report import pages
from tsugiki import LoraConfig
from tsugiki.adapters import BaseReference, Provenance
from tsugiki.hub import CardData, is_own_card, model_card
from tsugiki.language import speaking
from tsugiki.methods import BottleneckConfig
from tsugiki.training import RunRecord

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


def evaluation(step: int, loss: float, **more: Any) -> dict[str, Any]:
    """An evaluation on twelve documents whose bits per character are half the loss."""
    return {
        **pages.evaluation(step, loss),
        "bits_per_char": loss / 2,
        "documents": [[loss * 10 * i * (1.01 if i % 2 else 0.99), 10 * i, 20 * i] for i in range(1, 13)],
        "characters": 2000,
        **more,
    }


def record(**changed: Any) -> RunRecord:
    """A finished run, with some of its fields replaced."""
    config = {"data": "soseki.jsonl", "learning_rate": 1e-4, "seed": 7, **changed.pop("config", {})}
    machine = {"processor": "A | B", "cores": 2, "threads": 2, "accelerator": None, "system": "S", "python": "3"}
    training = {"steps": 8, "loss": 3.5, "tokens": 305, "seconds": 61.0, "tokens_per_second": 5.0}
    fields: dict[str, Any] = {
        "machine": machine,
        "parameters": {"trainable": 10, "total": 100, "share": 0.1},
        "evaluations": [evaluation(0, 4.0), evaluation(8, 3.0)],
        "samples": [{"step": step, "prompt": "雨が", "text": f"降る{step}\n"} for step in (0, 4, 8)],
        "training": {**training, "peak_memory": 10**9},
        **changed,
    }
    return pages.record(config=config, **fields)


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
    assert figures == {"loss": 3.0, "bits_per_char": 1.5, "perplexity": pytest.approx(math.exp(3), rel=1e-5)}


def test_the_page_tells_the_run():
    card = model_card(described())
    of_run = ["Samples", "Result", "Held-out text and loss", "Data", "Model and method", "Settings", "Machine"]
    assert headings(card) == ["soseki", *of_run, "Adapter", "Usage", "Licence"]
    page = page_of(card)
    (low, high), (least, most) = (entry.loss_interval for entry in record().evaluations if entry.loss_interval)
    loss = f"| loss | 4.000 [{low:.3f}, {high:.3f}] | 3.000 [{least:.3f}, {most:.3f}] | -25.0% |"
    assert loss in page
    assert "| perplexity | 54.60 [" in page
    assert "In brackets: 95 %" in page
    assert "On 12 texts that it has not seen, the adapter needs 25.0 % fewer bits per character (95 % interval" in page
    assert "sha256:cd" in page
    assert "`sha256:123`" in page
    assert code_of(card)[:2] == ["降る0\n", "降る8\n"]
    assert 'PeftModel.from_pretrained(model, "me/soseki")' in page
    assert "llama-cli -m base.gguf --lora soseki.gguf" in page


@pytest.mark.parametrize("text", AWKWARD)
def test_what_a_model_wrote_stays_in_its_block(text: str):
    valid = text.encode(errors="replace").decode()  # a record has no half surrogate pairs
    samples = [{"step": step, "prompt": valid, "text": valid} for step in (0, 8)]
    last = evaluation(8, 3.0, warning=valid)
    odd = record(samples=samples, config={"data": valid}, evaluations=[evaluation(0, 4.0), last])
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
