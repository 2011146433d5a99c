"""Soft prompts: compared with PEFT, and texts in a batch compared with each text alone."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from tests.errors import refused
from tests.lifecycle import assert_lifecycle
from tests.methods.beside_peft import peft_logits
from tests.runs import assert_resumes, run_config
from tests.tiny import byte_tokenizer, ids, logits, relative_error, save_tiny, seeded, shake, tiny_model
from tsugiki import (
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    methods,
    save_adapter,
    trainable_parameters,
    use_fast_paths,
)
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import Document, split_windows
from tsugiki.fast import attention, detect_document_masking, mask_documents
from tsugiki.generation import Sampling, generate_text
from tsugiki.io import ADAPTER_FILE, ProgressDisplay
from tsugiki.lora import is_grafted
from tsugiki.methods import PrefixTuningConfig, PromptTuningConfig
from tsugiki.training import RunConfig, evaluate, load_dtype, make_trainable, pack_data, read_data, train

LENGTH = 5
_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("PromptTuningConfig", {}),
    "prefix": ("PrefixTuningConfig", {}),
    "projected prefix": ("PrefixTuningConfig", {"prefix_projection": True, "encoder_hidden_size": 12}),
    "mlp": ("PromptEncoderConfig", {"encoder_hidden_size": 12}),
    "lstm": ("PromptEncoderConfig", {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6}),
}


def _config(method: str, library: Any, **more: Any) -> Any:
    name, settings = _SETTINGS[method]
    return getattr(library, name)(num_virtual_tokens=LENGTH, **settings, **more)


OURS: dict[str, Any] = {method: _config(method, methods) for method in _SETTINGS}
CASES = [
    ("gpt2", "prompt"),
    ("llama", "prefix"),
    ("gemma3_text", "projected prefix"),
    ("llama", "mlp"),
    ("gpt2", "lstm"),
    ("gpt2", "prefix"),
]
OPTIONS: dict[str, Any] = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": 1000}
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT uses deprecated names of transformers
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def grafted(kind: str, method: str) -> Any:
    return shake(graft(tiny_model(kind), OURS[method]))


def peft_model(kind: str, method: str) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(kind), _config(method, peft, task_type="CAUSAL_LM")).eval()


def our_name(method: str, name: str) -> str:
    """Translate PEFT's name of a weight of its encoder to ours."""
    name = name.replace("mlp_head.", "network.mlp." if method == "lstm" else "network.")
    name = name.replace("embedding.weight", "embedding").replace("transform.", "network.")
    return name.replace("lstm_head.", "network.lstm.")


@pytest.mark.parametrize(("kind", "method"), [("gemma3_text", "projected prefix"), ("gpt2", "lstm")])
def test_the_life_of_an_adapter(kind: str, method: str, tmp_path: Path):
    assert_lifecycle(partial(tiny_model, kind), OURS[method], tmp_path, start=math.inf, mergeable=False)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_pefts_prompt_loads_and_is_stored_again(kind: str, method: str, tmp_path: Path):
    theirs, base = peft_model(kind, method), logits(tiny_model(kind))
    theirs.save_pretrained(tmp_path)
    model = load_adapter(tiny_model(kind), tmp_path)
    assert relative_error(logits(model), base) > 1e-2
    assert relative_error(logits(model), peft_logits(theirs)) < 1e-5
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    stored = load_file(tmp_path / ADAPTER_FILE)["prompt_embeddings"]
    assert [p.numel() for p in trainable_parameters(model).values()] == [stored.numel()]
    save_adapter(model, tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / ADAPTER_FILE)["prompt_embeddings"], stored)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_training_steps_equal_pefts(kind: str, method: str):
    theirs, ours = peft_model(kind, method), tiny_model(kind)
    torch.manual_seed(1)
    adapter = active_adapter(graft(ours, OURS[method]))
    encoder = theirs.prompt_encoder["default"]
    state = {our_name(method, name): weight for name, weight in encoder.state_dict().items()}
    for name, weight in adapter.prompt.state_dict().items():
        assert float(weight.std()) == pytest.approx(float(state[name].std()), rel=0.5), "initial values as in PEFT"
    adapter.prompt.load_state_dict(state)
    ours.train()
    for model in (theirs, ours):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for seed in range(2):
            optimizer.zero_grad()
            # In PEFT's loss, the last virtual token predicts the first token of the text. In ours, as in the loss
            # of the base, no token predicts it.
            labels = ids(seed=seed).index_fill(1, torch.tensor([0]), -100)
            model(input_ids=ids(seed=seed), labels=labels).loss.backward()
            optimizer.step()
    mine = dict(adapter.prompt.named_parameters())
    assert mine.keys() == state.keys()
    for name, weight in encoder.named_parameters():
        assert weight.grad.abs().max() > 0, name
        assert relative_error(mine[our_name(method, name)].grad, weight.grad) < 1e-3, name
        # Adam divides by the size of the gradient, which amplifies the rounding error of small gradients.
        assert relative_error(mine[our_name(method, name)], weight) < 1e-3, name


def test_a_prompt_is_initialised_with_a_text_as_in_peft(tmp_path: Path):
    name = save_tiny(tmp_path / "base", "gemma3_text")  # its embedding layer scales the embeddings
    for text in ("庭師は枝を", "a"):  # longer than the prompt (cut), shorter (repeated)
        fields: dict[str, Any] = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text}
        config = _config("prompt", peft, task_type="CAUSAL_LM", tokenizer_name_or_path=name, **fields)
        theirs = peft.get_peft_model(load_model(name), config)
        model = load_model(name)
        adapter = active_adapter(graft(model, PromptTuningConfig(LENGTH, **fields)))
        assert torch.equal(adapter.prompt.embedding, theirs.prompt_encoder["default"].embedding.weight)
        # Neither library reads the tokenizer again to load the trained prompt.
        save_adapter(shake(model), tmp_path / text)
        (tmp_path / "base" / "tokenizer.json").rename(tmp_path / "hidden")
        assert torch.equal(logits(load_adapter(load_model(name), tmp_path / text)), logits(model))
        loaded = peft.PeftModel.from_pretrained(load_model(name), tmp_path / text).eval()
        assert relative_error(peft_logits(loaded), logits(model)) < 1e-5
        (tmp_path / "hidden").rename(tmp_path / "base" / "tokenizer.json")


def test_other_initial_values():
    model = tiny_model("gemma3_text")
    adapter = active_adapter(graft(model, PromptTuningConfig(LENGTH, prompt_tuning_init="SAMPLE_VOCAB")))
    table = model.get_input_embeddings()(torch.arange(96))
    assert all((row == table).all(-1).any() for row in adapter.prompt.embedding)
    for projection in (False, True):
        config = PrefixTuningConfig(LENGTH, prefix_projection=projection, init_weights="zero")
        assert not active_adapter(graft(tiny_model(), config)).prompt().any()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text"])
def test_a_prefix_initialised_with_tokens_of_the_vocabulary(kind: str, tmp_path: Path):
    # A text depends on the tokens before it only through their keys and values.
    prompted, prefixed = tiny_model(kind), tiny_model(kind).train()
    torch.manual_seed(2)
    graft(prefixed, PrefixTuningConfig(LENGTH, init_weights="SAMPLE_VOCAB"))
    torch.manual_seed(2)
    tokens = torch.randint(0, 96, (LENGTH,)).expand(2, -1)
    expected = logits(prompted, torch.cat([tokens, ids()], dim=-1))[:, LENGTH:]
    assert relative_error(logits(prefixed), expected) < 1e-5
    save_adapter(prefixed, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path)
    assert relative_error(peft_logits(theirs), expected) < 1e-5


def continued(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the greedy continuation by nine tokens, computed without a cache."""
    for _ in range(9):
        tokens = torch.cat([tokens, logits(model, tokens)[:, -1:].argmax(-1)], dim=-1)
    return tokens


@pytest.mark.parametrize(
    ("kind", "method"), [("gpt2", "prompt"), ("llama", "prefix"), ("opt", "prompt"), ("bloom", "prefix")]
)
def test_generation_with_a_prompt(kind: str, method: str):
    model = grafted(kind, method)
    with torch.no_grad():  # so that the tokens have clearly different probabilities
        model.get_decoder().tsugiki.embedding.mul_(3)
    tokens = ids(rows=2, length=7)

    def generated(use_cache: bool, **options: Any) -> torch.Tensor:
        torch.manual_seed(0)
        options |= {"attention_mask": torch.ones_like(tokens), **OPTIONS}
        found: torch.Tensor = model.generate(tokens, use_cache=use_cache, **options)
        return found

    expected = continued(model, tokens)
    assert torch.equal(generated(True, do_sample=False), expected)
    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}, {"do_sample": True}):
        assert torch.equal(generated(True, **options), generated(False, **options)), options


def test_generation_equals_pefts(tmp_path: Path):
    for method in ("prompt", "prefix"):
        model = grafted("gpt2", method)
        save_adapter(model, tmp_path / method)
        theirs = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / method).eval()
        options = {**OPTIONS, "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(theirs.generate(input_ids=ids(), **options), model.generate(ids(), **options))


def documents() -> list[torch.Tensor]:
    """Texts shorter and longer than the sliding window of 8 of the tiny models."""
    return [ids(1, length, seed=length) for length in (3, 12, 9, 2)]


def packed(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    places = [torch.arange(row.shape[1])[None] for row in rows]
    return {"input_ids": torch.cat(rows, -1), "position_ids": torch.cat(places, -1)}


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, use_cache=False).logits


@pytest.mark.parametrize(
    ("kind", "method", "attention"),
    [
        ("gpt2", "prompt", "tsugiki"),
        ("llama", "prefix", "tsugiki"),
        ("gemma3_text", "prompt", "eager"),
        ("mistral", "prompt", "tsugiki"),
        ("mistral", "prefix", "sdpa"),
        ("opt", "prompt", "sdpa"),
    ],
)
def test_packed_documents_equal_single_documents(kind: str, method: str, attention: str):
    model = grafted(kind, method)
    if attention == "tsugiki":
        use_fast_paths(model, loss=False)
    else:
        model.set_attn_implementation(attention)
    assert detect_document_masking(model) == "position_ids"
    rows = [documents(), documents()[::-1]]
    two = [packed(row) for row in rows]
    batch = {name: torch.cat([row[name] for row in two]) for name in two[0]}
    together = model(**mask_documents(batch, "position_ids"), use_cache=False).logits
    alone = torch.cat([torch.cat([model(one, use_cache=False).logits for one in row], 1) for row in rows])
    assert relative_error(together, alone) < 1e-5
    if kind == "gpt2":  # which has no window
        by_mask = mask_documents(batch, "attention_mask")
        assert relative_error(logits_of(model, by_mask), alone) < 1e-5
        seen = by_mask["attention_mask"] == 0
        assert relative_error(logits_of(model, {**by_mask, "attention_mask": seen}), alone) < 1e-5
    weights = list(trainable_parameters(model).values())
    towards = torch.randn(together.shape, generator=seeded(0))
    found, expected = (torch.autograd.grad((each * towards).sum(), weights) for each in (together, alone))
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kind", "place"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
def test_blockwise_attention_includes_the_prompt(kind: str, place: str, monkeypatch: pytest.MonkeyPatch):
    model = graft(tiny_model(kind, **{place: 256}), OURS["prefix"])
    weights, row = list(trainable_parameters(model).values()), packed([ids(1, 90), ids(1, 110)])

    def results() -> list[torch.Tensor]:
        loss = model(**row, labels=row["input_ids"], use_cache=False).loss
        return [logits(model, ids(2, 150)), logits_of(model, row), *torch.autograd.grad(loss, weights)]

    plain = results()
    use_fast_paths(model)
    monkeypatch.setattr(attention, "plain_attention", None)
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(results(), plain, strict=True))


@pytest.mark.parametrize(
    ("kind", "config"), [("mistral", PromptTuningConfig(12)), ("gemma3_text", PrefixTuningConfig(12))]
)
def test_a_prompt_may_be_longer_than_the_sliding_window(kind: str, config: Any, tmp_path: Path):
    model = graft(tiny_model(kind), config)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path).eval()
    assert relative_error(peft_logits(theirs), logits(model)) < 1e-5
    rows, tokens = documents(), ids(rows=2, length=7)
    alone = torch.cat([logits(model, row) for row in rows], 1)
    assert relative_error(logits_of(model, packed(rows)), alone) < 1e-5
    found = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, **OPTIONS)
    assert torch.equal(found, continued(model, tokens))


def settings(folder: Path, method: str, method_config: dict[str, Any], **changes: Any) -> RunConfig:
    fields = {"method": method, "method_config": method_config, "batch_size": 4, "block_size": None}
    return run_config(folder, **{**fields, **changes})


@pytest.mark.parametrize(
    ("kind", "bare"), [("bloom", "separate_rows"), ("gpt_neo", "position_ids"), ("opt", "attention_mask")]
)
def test_document_masking_is_detected_with_the_prompt(kind: str, bare: str, tmp_path: Path):
    config = settings(tmp_path, "prompt-tuning", {"num_virtual_tokens": 5})
    model = tiny_model(kind, vocab_size=257)
    assert detect_document_masking(model) == bare
    split = read_data(config, byte_tokenizer(), ProgressDisplay())
    data = pack_data(split, model, byte_tokenizer(), config.block_size, config.virtual_tokens)
    assert data.document_masking == ("position_ids" if kind == "opt" else "separate_rows")
    assert not is_grafted(model)


def test_the_prompt_takes_up_context(tmp_path: Path):
    model, tokenizer = load_model(save_tiny(tmp_path)), byte_tokenizer()  # 64 learned positions
    use_fast_paths(graft(model, PrefixTuningConfig(num_virtual_tokens=32)))
    text = generate_text(model, tokenizer, "a" * 29, 50, Sampling(temperature=0))
    assert len(tokenizer(text).input_ids) <= 2
    with refused("32"):
        generate_text(model, tokenizer, "a" * 32, 1, Sampling())
    windows = split_windows([Document("a" * 40, "x")], [40])
    assert evaluate(model, tokenizer, windows).split_windows == 1
    with refused("block_size is 57.* 64 .*8 .* 56"):
        train(settings(tmp_path / "run", "prompt-tuning", {"num_virtual_tokens": 8}, block_size=57))


def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path):
    config = settings(tmp_path, "p-tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 8})
    whole = assert_resumes(train, config, 3)
    losses = [entry.loss for entry in whole.evaluations]
    assert losses[-1] == min(losses[1:]), "the best step is kept; the first loss is that of the base"
    other = train(settings(tmp_path, "prompt-tuning", {"num_virtual_tokens": 4}, out="other", max_steps=1))
    assert (other.evaluations[0], other.samples[0]) == (whole.evaluations[0], whole.samples[0])
    assert (whole.data.block_size, whole.data.document_masking) == (60, "position_ids")
    folder = Path(config.out) / "whole"
    theirs = peft.PeftModel.from_pretrained(load_model(config.model), folder).eval()
    assert relative_error(peft_logits(theirs), logits(load_adapter(load_model(config.model), folder))) < 1e-5


def test_an_untrained_prompt_on_a_bfloat16_base_keeps_the_fast_paths(tmp_path: Path):
    config = settings(tmp_path, "prefix-tuning", {}, model="embedded", base_dtype="bf16")
    model, tokenizer = load_model(config.model, load_dtype(config)), load_tokenizer(config.model)
    split = read_data(config, tokenizer, ProgressDisplay())
    data = pack_data(split, model, tokenizer, config.block_size, config.virtual_tokens)
    assert data.document_masking == "position_ids"
    torch.manual_seed(42)
    make_trainable(model, config)
    assert model.config._attn_implementation == "tsugiki"


def test_what_a_prompt_cannot_do_is_an_error():
    model = grafted("llama", "prompt")
    before = logits(model)
    with refused("cache of fixed length"):
        model.generate(ids(), cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="inputs_embeds"):  # raised by transformers
        model()
    local = grafted("gpt_neo", "prompt")  # its windows count positions in the row, including padding
    padded = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with refused("GPTNeoModel .*left"):
        local(ids(2, 4), attention_mask=padded)
    model.gradient_checkpointing_enable()
    with refused("gradient_checkpointing_disable"):
        model.train()(input_ids=ids(), labels=ids())
    assert torch.equal(logits(model), before)
