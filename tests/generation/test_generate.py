"""Text in the calling thread: streamed whole characters, a seed of its own, room in the context, prompts together."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.errors import assert_refused
from tests.runs import threads
from tests.tiny import byte_tokenizer, tiny_model
from tests.tiny_types import tiny_of
from tsugiki import graft, use_fast_paths
from tsugiki.generation import Engine, Request, Sampling, generate_text, generate_texts
from tsugiki.methods import METHODS

PROMPTS = ["雨", "", "庭の枝に", "猫a"]
TOKENIZER = byte_tokenizer()


def ids_of(text: str) -> list[int]:
    return [TOKENIZER.eos_token_id, *TOKENIZER(text, add_special_tokens=False).input_ids]


def forcing(model: Any, scores: Any) -> None:
    """Let the model compute `scores(its logits)`."""
    model.lm_head.register_forward_hook(lambda module, inputs, logits: scores(logits))


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each computed batch, without the probe."""
    from tsugiki.generation import scheduler

    seen: list[int] = []
    compute = scheduler.compute

    def counted(model: Any, cached: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(ids))
        return compute(model, cached, ids, *rest)

    monkeypatch.setattr(scheduler, "compute", counted)
    return seen


def test_what_streams_is_what_is_returned_and_has_no_half_character():
    model, pieces = tiny_model(vocab_size=257), []
    text = generate_text(model, TOKENIZER, "猫", 50, Sampling(1.0, 1.0, seed=3), pieces.append)
    assert "".join(pieces) == text
    pieces.clear()
    script = iter(ids_of("猫a犬")[1:-1])  # whether rows can be batched is known
    forcing(model, lambda logits: torch.eye(257)[next(script)].expand_as(logits))
    assert generate_text(model, TOKENIZER, "b", 6, Sampling(0.0), pieces.append) == "猫a"
    assert pieces == ["猫", "a"]
    pieces.clear()
    with pytest.raises(IndexError):  # an error of the one who gets the text
        generate_text(tiny_model(vocab_size=257), TOKENIZER, "a", 50, Sampling(1.0), lambda piece: pieces[5])


def test_the_seed_decides_and_the_global_state_is_left_alone():
    model = tiny_model(vocab_size=257).train()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, two, three = (generate_text(model, TOKENIZER, "雨", 20, Sampling(1.0, 1.0, seed)) for seed in (1, 1, 2))
    assert one == two != three
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_a_seed_gives_the_text_of_the_server():
    model, sampling = tiny_model("llama", vocab_size=257), Sampling(1.0, 0.9, seed=4, repetition_penalty=1.2)
    here = generate_text(model, TOKENIZER, "雨", 20, sampling)
    engine, events = Engine(model), []
    engine.start()
    engine.submit([Request(ids_of("雨"), TOKENIZER, 20, events.append, sampling=sampling, ends={0})])
    while not events or events[-1].finish_reason is None:
        engine.call(lambda: None).result()
    engine.stop()
    assert "".join(event.text for event in events) == here != ""


def test_generation_stops_at_the_context():
    model = tiny_model(vocab_size=257)
    always = F.one_hot(torch.tensor(TOKENIZER("b").input_ids[-1]), 257).float()
    forcing(model, lambda logits: logits * 0 + always)
    prompt, room = "a" * 60, 64 - 1 - 60  # of the context, the first token and the prompt
    assert generate_text(model, TOKENIZER, prompt, 50, Sampling(0.0)) == "b" * room
    assert generate_texts(model, TOKENIZER, [prompt, "b"], 5, Sampling(0.0)) == ["b" * room, "b" * 5]
    for prompts in (["雨" * 30], ["b", "雨" * 30]):
        assert_refused("91 tokens.* 64", generate_texts, model, TOKENIZER, prompts, 5, Sampling())


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [("gpt2", 0.0), ("gemma3_text", 1.3), ("opt", 1.3), ("bloom", 0.0), ("llama with a prompt", 1.3)],
)
def test_together_as_alone(kind: str, temperature: float, widths: list[int]):
    model = tiny_model(kind.split()[0], vocab_size=257)
    if "prompt" in kind:
        graft(model, METHODS["prompt-tuning"].configure({"num_virtual_tokens": 4}))
    use_fast_paths(model)
    sampling = Sampling(temperature, 0.95, seed=5, repetition_penalty=1.5)
    alone = [generate_text(model, TOKENIZER, prompt, 12, sampling) for prompt in PROMPTS]
    assert set(widths) == {1}
    assert generate_texts(model, TOKENIZER, PROMPTS, 12, sampling) == alone
    assert max(widths) == 4


def test_one_at_a_time_in_a_model_that_sees_padding(widths: list[int]):
    model = tiny_model(vocab_size=257)

    def without_mask(module: Any, args: Any, given: dict[str, Any]) -> Any:
        return args, {**given, "attention_mask": None}

    model.register_forward_pre_hook(without_mask, with_kwargs=True)
    alone = [generate_text(model, TOKENIZER, prompt, 6, Sampling(0.0)) for prompt in PROMPTS]
    assert generate_texts(model, TOKENIZER, PROMPTS, 6, Sampling(0.0)) == alone
    assert set(widths) == {1}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mamba", "rwkv"])
def test_greedy_text_is_that_of_transformers(kind: str, widths: list[int]):
    model = tiny_model(kind, vocab_size=257) if kind in ("gpt2", "llama") else tiny_of(kind, vocab_size=257)
    model.generation_config.repetition_penalty = 1.3
    ids = torch.tensor([ids_of("庭の枝")])
    for given in ({}, {"repetition_penalty": 1.0}):
        out = model.generate(ids, do_sample=False, max_new_tokens=20, eos_token_id=0, pad_token_id=0, **given)
        expected = TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        found = generate_texts(model, TOKENIZER, ["庭の枝", "庭"], 20, Sampling(0.0, **given))[0]
        assert found == expected.rstrip("\N{REPLACEMENT CHARACTER}")
    assert bool(widths) == (kind in ("gpt2", "llama"))
    sampling = Sampling(1.0, seed=2)
    texts = generate_texts(model, TOKENIZER, ["庭の枝", "庭"], 20, sampling)
    assert texts == [generate_text(model, TOKENIZER, prompt, 20, sampling) for prompt in ("庭の枝", "庭")]


def test_one_thread_computes_samples():
    model, seen = tiny_model(vocab_size=257), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    with threads(3):
        generate_texts(model, TOKENIZER, ["a", "b"], 3, Sampling())
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3
