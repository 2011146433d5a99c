"""Generation: streamed whole characters, a seed of its own, room in the context, several prompts together."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import RepetitionPenaltyLogitsProcessor

from tests.tiny import byte_tokenizer, tiny_model
from tsugiki import TsugikiError, graft, use_fast_paths
from tsugiki.generation import Sampling, generate_text, generate_texts
from tsugiki.generation import texts as sample
from tsugiki.generation.texts import _RepetitionPenalty
from tsugiki.methods import METHODS

PROMPTS = ["雨", "", "庭の枝に", "猫a"]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1.0])
def test_what_streams_is_what_is_returned_and_has_no_half_character(temperature: float):
    model, pieces = tiny_model(vocab_size=257), []
    text = generate_text(model, byte_tokenizer(), "猫", Sampling(50, temperature, 1.0, seed=3), pieces.append)
    assert "".join(pieces) == text


def test_a_character_of_three_tokens_comes_whole():
    model, tokenizer, pieces = tiny_model(vocab_size=257), byte_tokenizer(), []
    script = iter(tokenizer("猫a犬", add_special_tokens=False).input_ids[:-1])
    scores = torch.eye(257)
    model.lm_head.register_forward_hook(lambda module, inputs, output: scores[next(script)].expand_as(output))
    text = generate_text(model, tokenizer, "b", Sampling(6, 0.0), pieces.append)
    assert pieces == ["猫", "a"]
    assert text == "猫a"


def test_the_seed_decides_and_the_global_state_is_left_alone():
    model, tokenizer = tiny_model(vocab_size=257).train(), byte_tokenizer()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, two, three = (generate_text(model, tokenizer, "雨", Sampling(20, 1.0, 1.0, seed)) for seed in (1, 1, 2))
    assert one == two != three
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_a_prompt_longer_than_the_context():
    with pytest.raises(TsugikiError, match="91 tokens.* 64"):
        generate_text(tiny_model(vocab_size=257), byte_tokenizer(), "雨" * 30, Sampling())


def test_generation_stops_at_the_context():
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    always = F.one_hot(torch.tensor(tokenizer("b").input_ids[-1]), 257).float()
    model.lm_head.register_forward_hook(lambda module, inputs, scores: scores * 0 + always)
    prompt = "a" * 60
    room = 64 - 1 - 60  # of the context, the first token and the prompt
    assert generate_text(model, tokenizer, prompt, Sampling(50, 0.0)) == "b" * room
    assert generate_text(model, tokenizer, prompt, Sampling(room - 1, 0.0)) == "b" * (room - 1)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each generated batch, without the probe."""
    seen: list[int] = []
    original = sample._generate

    def counted(model: Any, tokenizer: Any, rows: Any, *given: Any, **options: Any) -> Any:
        if options.get("stops", True):
            seen.append(len(rows))
        return original(model, tokenizer, rows, *given, **options)

    monkeypatch.setattr(sample, "_generate", counted)
    return seen


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "opt", "bloom", "llama with a soft prompt"])
def test_together_as_alone(kind: str, temperature: float, batches: list[int]):
    model, tokenizer = tiny_model(kind.split()[0], vocab_size=257), byte_tokenizer()
    if "prompt" in kind:
        graft(model, METHODS["prompt-tuning"].configure({"num_virtual_tokens": 4}))
    use_fast_paths(model)
    sampling = Sampling(12, temperature, 0.95, seed=5)
    alone = [generate_text(model, tokenizer, prompt, sampling) for prompt in PROMPTS]
    batches.clear()
    assert generate_texts(model, tokenizer, PROMPTS, sampling) == alone
    assert batches == [4]


def test_texts_that_end_early(batches: list[int]):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    more = 3 * F.one_hot(torch.tensor(0), 257).float()
    model.lm_head.register_forward_hook(lambda module, inputs, scores: 20 * scores + more)
    sampling = Sampling(30, 1.0, 1.0, seed=3)
    alone = [generate_text(model, tokenizer, prompt, sampling) for prompt in PROMPTS]
    assert generate_texts(model, tokenizer, PROMPTS, sampling) == alone
    assert batches[4:] == [4]
    assert len(set(map(len, alone))) > 1


def test_one_at_a_time_in_a_model_that_sees_padding(batches: list[int]):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()

    def without_mask(module: Any, args: Any, given: dict[str, Any]) -> Any:
        return args, {**given, "attention_mask": None}

    model.register_forward_pre_hook(without_mask, with_kwargs=True)
    sampling = Sampling(6, 0.0)
    alone = [generate_text(model, tokenizer, prompt, sampling) for prompt in PROMPTS]
    batches.clear()
    assert generate_texts(model, tokenizer, PROMPTS, sampling) == alone
    assert batches == [1, 1, 1, 1]


def test_one_at_a_time_where_the_context_ends(batches: list[int]):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    texts = generate_texts(model, tokenizer, ["a" * 60, "b"], Sampling(20, 0.0))
    assert batches == [1, 1]
    assert texts == [generate_text(model, tokenizer, prompt, Sampling(20, 0.0)) for prompt in ("a" * 60, "b")]
    with pytest.raises(TsugikiError, match="91 tokens.* 64"):
        generate_texts(model, tokenizer, ["b", "雨" * 30], Sampling())


def test_tokens_are_drawn_as_transformers_draws_them():
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    ids = torch.tensor([[0, *tokenizer("雨", add_special_tokens=False).input_ids]])
    torch.manual_seed(8)
    drawn = model.generate(
        ids, do_sample=True, temperature=0.9, top_p=0.8, top_k=0, max_new_tokens=20, eos_token_id=0, pad_token_id=0
    )
    expected = sample._text(tokenizer, drawn[0, ids.shape[1] :].tolist())
    assert generate_text(model, tokenizer, "雨", Sampling(20, 0.9, 0.8, seed=8)) == expected


def test_one_thread_computes_samples():
    model, tokenizer, seen = tiny_model(vocab_size=257), byte_tokenizer(), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        generate_texts(model, tokenizer, ["a", "b"], Sampling(3))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_repetition_penalty_is_that_of_transformers_and_ignores_padding(temperature: float):
    model, tokenizer = tiny_model(vocab_size=257), byte_tokenizer()
    sampling = Sampling(12, temperature, 1.0, seed=2, repetition_penalty=1.5)
    alone = [generate_text(model, tokenizer, prompt, sampling) for prompt in ("雨", "庭の枝を切る")]
    assert generate_texts(model, tokenizer, ["雨", "庭の枝を切る"], sampling) == alone
    if temperature == 0:
        assert alone != generate_texts(
            model, tokenizer, ["雨", "庭の枝を切る"], replace(sampling, repetition_penalty=1.0)
        )
    ids, scores = torch.tensor([[5, 6, 5]]), torch.randn(1, 257)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(ids, scores)
    assert torch.equal(_RepetitionPenalty(1.5, [0])(ids, scores), expected)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), ids], 1)
    assert torch.equal(_RepetitionPenalty(1.5, [2])(padded, scores), expected)
