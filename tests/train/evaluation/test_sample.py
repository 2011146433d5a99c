"""Generation: streamed whole characters, a seed of its own, room in the context."""

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import byte_tokenizer, tiny_model
from tsugiki import TsugikiError
from tsugiki.train.evaluation.sample import Sampling, generate_text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
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
