"""Evaluation against a plain float64 loop, one token at a time."""

import math
from typing import Any

import pytest
import torch

from tests.errors import refused
from tests.tiny import TEXT, byte_tokenizer, logits, tiny_model
from tsugiki import LoraConfig, graft, use_fast_paths
from tsugiki.data import WINDOW_CHARACTERS, Completion, Conversation, Document, Message, Window, split_windows
from tsugiki.fast import has_chunked_loss
from tsugiki.methods import METHODS
from tsugiki.training import evaluate
from tsugiki.training.record.result import Evaluation
from tsugiki.training.score import evaluate as evaluate_module


def score(model, texts: list[str], tokenizer=None) -> Evaluation:
    windows = [Window(Document(text, str(i)), i) for i, text in enumerate(texts)]
    return evaluate(model, tokenizer or byte_tokenizer(), windows)


def naive_nll(model, windows: list[str]) -> float:
    """Σ -log p(token | <end>, the window's tokens before it), each from a forward pass of its own."""
    rows = [[0, *byte_tokenizer()(window, add_special_tokens=False).input_ids] for window in windows]
    return sum(nll_of(model, row[:end], 1) for row in rows for end in range(2, len(row) + 1))


def nll_of(model, ids: list[int], learned: int) -> float:
    """Σ -log p of the last `learned` tokens of a row."""
    log_p = logits(model, torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    return -sum(float(log_p[i - 1, ids[i]]) for i in range(len(ids) - learned, len(ids)))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "bloom"])
def test_every_token_counts_given_what_stands_before_it(kind: str):
    model = tiny_model(kind, vocab_size=257)
    windows = ["庭の枝。", "a", "接ぎ木は春に", "雨"]  # lengths differ: padding must not be seen
    result = score(model, windows)
    expected = naive_nll(model, windows)
    assert result.nll == pytest.approx(expected, rel=1e-5)
    assert result.tokens == len("".join(windows).encode())
    assert result.characters == len("".join(windows))
    assert result.loss == pytest.approx(expected / result.tokens)
    assert result.perplexity == pytest.approx(math.exp(expected / result.tokens))
    assert result.bits_per_char == pytest.approx(expected / math.log(2) / result.characters)
    assert result.tokenizer_is_lossless
    assert result.warning is None
    with refused("no text"):
        score(model, [])


ADAPTERS: dict[str, Any] = {
    "lora with the head": LoraConfig(r=4, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False),
    "dora on the head": LoraConfig(r=4, target_modules=["lm_head"], use_dora=True, init_lora_weights=False),
    "prompt-tuning": METHODS["prompt-tuning"].configure({"num_virtual_tokens": 4}),
    "ia3": METHODS["ia3"].configure({"init_ia3_weights": False}),
}


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("llama", name) for name in ADAPTERS] + [("gpt2", None), ("gemma2", None), ("cohere", None), ("bloom", None)],
)
def test_the_fast_paths_give_the_figures_of_the_definition(kind: str, adapter: str | None):
    model = tiny_model(kind, vocab_size=257)
    if adapter:
        graft(model, ADAPTERS[adapter])
    windows = [TEXT[:20], TEXT[40:57], "雨", TEXT[60:66]]
    expected = naive_nll(model, windows)
    use_fast_paths(model)
    assert has_chunked_loss(model)
    assert score(model, windows).nll == pytest.approx(expected, rel=1e-5)


def test_no_bit_depends_on_the_number_of_threads():
    model = tiny_model("llama", vocab_size=257, hidden_size=128, intermediate_size=384).to(torch.bfloat16).train()
    use_fast_paths(model)
    texts = [TEXT[start : start + 9 + start % 12] for start in range(0, 300, 25)]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 16):  # 16 are more than there are windows
        torch.set_num_threads(threads)
        try:
            results.append(score(model, texts))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
    assert results[1:] == results[:-1]
    assert model.training


def test_a_sequence_has_no_longer_one_beside_it_where_positions_depend_on_it(monkeypatch: pytest.MonkeyPatch):
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "original_max_position_embeddings": 16}
    model = tiny_model("llama", vocab_size=257, rope_parameters={"rope_type": "longrope", **factors})
    monkeypatch.setattr(evaluate_module, "run_in_threads", None)  # two threads must not call such a model at once
    windows = [TEXT[:20], "雨", TEXT[30:36]]
    together = score(model, windows).nll
    assert together == pytest.approx(sum(score(model, [window]).nll for window in windows), rel=1e-12)


def test_a_window_beyond_the_context_is_scored_in_pieces():
    model = tiny_model(vocab_size=257)  # a context of 64 tokens, 21 characters
    result = score(model, ["雨" * 30])
    assert (result.windows, result.split_windows, result.tokens) == (1, 1, 90)
    assert result.nll == pytest.approx(naive_nll(model, ["雨" * 21]) + naive_nll(model, ["雨" * 9]), rel=1e-5)


def test_unknowns_and_lost_text_are_counted():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    result = score(tiny_model(), ["aabc"], tokenizer)
    assert (result.unknown_tokens, result.tokenizer_is_lossless) == (2, False)
    assert "2 unknown tokens" in result.warning


def test_windows_are_of_equal_characters_and_spread_over_all():
    whole = WINDOW_CHARACTERS
    documents = [Document(text, "") for text in ("あ" * (2 * whole + 1), "い" * whole, " ")]
    lengths = [len(document.text) for document in documents]
    windows = split_windows(documents, lengths)
    found = [(len(window.record.text), window.document) for window in windows]
    assert found == [(whole, 0), (whole, 0), (1, 0), (whole, 1)]
    assert split_windows(documents, lengths, limit=2 * whole) == [windows[0], windows[2]]
    assert split_windows(documents, lengths, limit=1) == windows[:1]
    assert split_windows(iter(documents), lengths, limit=10**9) == windows


def test_figures_are_of_documents_and_add_up():
    model = tiny_model(vocab_size=257)
    texts = ["庭の枝。", "接ぎ木は春に", "雨", "葉"]
    windows = [Window(Document(text, ""), number) for number, text in zip([4, 9, 4, 11], texts, strict=True)]
    result = evaluate(model, byte_tokenizer(), windows)
    assert [(tokens, characters) for _, tokens, characters in result.documents] == [(15, 5), (18, 6), (3, 1)]
    assert result.documents[0][0] == pytest.approx(naive_nll(model, [texts[0], texts[2]]), rel=1e-5)
    low, high = result.loss_interval
    assert low < result.loss < high
    assert result.perplexity_interval == pytest.approx((math.exp(low), math.exp(high)))


def test_of_an_answer_what_is_learned_is_scored():
    model = tiny_model(vocab_size=257)
    tokenizer = byte_tokenizer(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    talk = Conversation((Message("user", "枝?"), Message("assistant", "はい")), "t:1")
    long = Completion("雨" * 30, "x", "t:2")
    pair = Window(Completion("ab", "雨", "c:1"), 0)
    result = evaluate(model, tokenizer, [pair, Window(talk, 1), Window(long, 2)])
    plain = evaluate(model, byte_tokenizer(), [pair])
    assert [(tokens, characters) for _, tokens, characters in result.documents] == [(4, 1), (7, 2)]
    assert result.skipped_records == 1
    for (nll, _, _), ids, learned in (
        (plain.documents[0], [0, *tokenizer("ab雨").input_ids, 0], 4),
        (result.documents[0], [*tokenizer("u:ab").input_ids, 0, *tokenizer("a:雨").input_ids, 0], 4),
        (result.documents[1], [*tokenizer("u:枝?").input_ids, 0, *tokenizer("a:はい").input_ids, 0], 7),
    ):
        assert nll == pytest.approx(nll_of(model, ids, learned), rel=1e-5)
