"""Soft prompts: compared with PEFT, and texts in a batch compared with each text alone."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.adapters.folders import edit_config
from tests.lifecycle import assert_lifecycle
from tests.runs import assert_resumes, run_config
from tests.tiny import byte_tokenizer, ids, logits, relative_error, save_tiny, shake, store_of, summed_loss, tiny_model
from tsugiki import (
    TsugikiError,
    active_adapter,
    disable_adapter,
    graft,
    load_adapter,
    merge,
    methods,
    save_adapter,
    trainable_parameters,
    use_fast_paths,
)
from tsugiki.base import load_model, load_tokenizer
from tsugiki.data import Collator, StepBatches, pack
from tsugiki.fast import attention, detect_document_masking, mask_documents
from tsugiki.generation import Sampling, generate_text
from tsugiki.io import ProgressDisplay
from tsugiki.lora import is_grafted
from tsugiki.methods import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from tsugiki.model import context_length
from tsugiki.training import (
    Gradients,
    RunConfig,
    evaluate,
    load_dtype,
    make_trainable,
    pack_data,
    read_data,
    split_windows,
    start_accelerator,
    train,
)

KINDS = ["gpt2", "llama", "gemma3_text"]
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
    ("gemma3_text", "prefix"),
]
NAMES = {"embedding.weight": "embedding", "transform.": "network.", "lstm_head.": "network.lstm."}

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT uses deprecated names of transformers
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def grafted(kind: str, method: str, seed: int = 3) -> Any:
    model = tiny_model(kind)
    graft(model, OURS[method])
    return shake(model, seed)


def peft_model(kind: str, method: str) -> Any:
    torch.manual_seed(1)
    return peft.get_peft_model(tiny_model(kind), _config(method, peft, task_type="CAUSAL_LM")).eval()


def peft_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids()).logits[:, -ids().shape[1] :]


def our_name(method: str, name: str) -> str:
    """Translate PEFT's name of a weight of its encoder to ours."""
    name = name.replace("mlp_head.", "network.mlp." if method == "lstm" else "network.")
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize(("kind", "method"), [("gemma3_text", "projected prefix"), ("gpt2", "lstm")])
def test_the_life_of_an_adapter(kind: str, method: str, tmp_path: Path):
    assert_lifecycle(functools.partial(tiny_model, kind), OURS[method], tmp_path, start=math.inf, mergeable=False)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_pefts_loads_here_and_its_prompt_trains(kind: str, method: str, tmp_path: Path):
    theirs = peft_model(kind, method)
    theirs.save_pretrained(tmp_path)
    model = tiny_model(kind)
    base = logits(model)
    load_adapter(model, tmp_path)
    assert relative_error(logits(model), base) > 1e-2
    assert relative_error(logits(model), peft_logits(theirs)) < 1e-5
    with disable_adapter(model):
        assert torch.equal(logits(model), base)
    assert [p.numel() for p in trainable_parameters(model).values()] == [
        load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].numel()
    ]
    save_adapter(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(
        again["prompt_embeddings"], load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    )


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_training_steps_equal_pefts(kind: str, method: str):
    theirs, ours = peft_model(kind, method), tiny_model(kind)
    adapter = active_adapter(graft(ours, OURS[method]))
    encoder = theirs.prompt_encoder["default"]
    state = {our_name(method, name): weight for name, weight in encoder.state_dict().items()}
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


@pytest.mark.parametrize("method", OURS)
def test_a_prompt_is_initialised_as_in_peft(method: str):
    theirs = peft_model("llama", method).prompt_encoder["default"].state_dict()
    torch.manual_seed(1)
    ours = active_adapter(graft(tiny_model("llama"), OURS[method])).prompt.state_dict()
    for name, weight in theirs.items():
        mine = ours[our_name(method, name)]
        assert mine.shape == weight.shape
        assert float(mine.std()) == pytest.approx(float(weight.std()), rel=0.3)
        assert float(mine.abs().max()) == pytest.approx(float(weight.abs().max()), rel=0.6)


def test_a_prefix_initialised_with_zeros_has_zero_keys_and_values():
    for config in (OURS["prefix"], OURS["projected prefix"]):
        fields = {**vars(config), "init_weights": "zero"}
        adapter = active_adapter(graft(tiny_model(), PrefixTuningConfig(**fields)))
        assert not adapter.prompt().any()


def test_a_prompt_is_initialised_with_a_text_as_in_peft(tmp_path: Path):
    name = save_tiny(tmp_path / "base", "gemma3_text")  # its embedding layer scales the embeddings
    for text in ("庭師は枝を", "a"):  # longer than the prompt (cut), shorter (repeated)
        theirs = peft.get_peft_model(
            load_model(name),
            peft.PromptTuningConfig(
                task_type="CAUSAL_LM",
                num_virtual_tokens=LENGTH,
                prompt_tuning_init="TEXT",
                prompt_tuning_init_text=text,
                tokenizer_name_or_path=name,
            ),
        )
        model = load_model(name)
        fields: dict[str, Any] = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text}
        adapter = active_adapter(graft(model, PromptTuningConfig(LENGTH, **fields)))
        assert torch.equal(adapter.prompt.embedding, theirs.prompt_encoder["default"].embedding.weight)
        # Neither library reads the tokenizer again to load the trained prompt.
        save_adapter(shake(model), tmp_path / text)
        (tmp_path / "base" / "tokenizer.json").rename(tmp_path / "hidden")
        again = load_model(name)
        load_adapter(again, tmp_path / text)
        loaded = peft.PeftModel.from_pretrained(load_model(name), tmp_path / text).eval()
        assert torch.equal(logits(again), logits(model))
        assert relative_error(peft_logits(loaded), logits(model)) < 1e-5
        (tmp_path / "hidden").rename(tmp_path / "base" / "tokenizer.json")


def test_a_prompt_initialised_with_tokens_of_the_vocabulary():
    model = tiny_model("gemma3_text")
    adapter = active_adapter(graft(model, PromptTuningConfig(LENGTH, prompt_tuning_init="SAMPLE_VOCAB")))
    table = model.get_input_embeddings()(torch.arange(96))
    assert all((row == table).all(-1).any() for row in adapter.prompt.embedding)


@pytest.mark.parametrize("kind", KINDS)
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
    load_adapter(prompted, tmp_path)
    assert torch.equal(logits(prompted), logits(prefixed))
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path)
    assert relative_error(peft_logits(theirs), expected) < 1e-5


def continued(model: Any, tokens: torch.Tensor, count: int) -> torch.Tensor:
    """Return the greedy continuation, computed without a cache."""
    for _ in range(count):
        tokens = torch.cat([tokens, logits(model, tokens)[:, -1:].argmax(-1)], dim=-1)
    return tokens


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("gpt2", "prompt"),
        ("llama", "prefix"),
        ("opt", "prompt"),
        ("bloom", "prefix"),
    ],
)
def test_generation_with_a_prompt(kind: str, method: str):
    model = grafted(kind, method)
    with torch.no_grad():  # so that the tokens have clearly different probabilities
        model.get_decoder().tsugiki.embedding.mul_(3)
    tokens = ids(rows=2, length=7)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": 9,
        "pad_token_id": 0,
        "eos_token_id": 1000,
    }
    expected = continued(model, tokens, 9)
    for use_cache in (True, False):
        found = model.generate(tokens, use_cache=use_cache, do_sample=False, **options)
        assert torch.equal(found, expected), use_cache
    beams = [
        model.generate(tokens, num_beams=3, do_sample=False, use_cache=cached, **options) for cached in (False, True)
    ]
    assert torch.equal(*beams)
    drawn = []
    for cached in (False, True):
        torch.manual_seed(0)
        drawn.append(model.generate(tokens, do_sample=True, use_cache=cached, **options))
    assert torch.equal(*drawn)


def test_generation_equals_pefts(tmp_path: Path):
    for method in ("prompt", "prefix"):
        model = grafted("gpt2", method)
        save_adapter(model, tmp_path / method)
        theirs = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / method).eval()
        options: dict[str, Any] = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 1000, "do_sample": False}
        assert torch.equal(theirs.generate(input_ids=ids(), **options), model.generate(ids(), **options))


def test_a_cache_is_returned_only_on_request():
    for kind in KINDS:
        model = grafted(kind, "prompt")
        with torch.no_grad():
            assert model(ids(), use_cache=False).get("cache") is None
            asked = model(ids(), use_cache=True)
            step = model(ids(length=1), cache=asked.cache, use_cache=True)
            whole = model(torch.cat([ids(), ids(length=1)], dim=-1), use_cache=False)
        assert asked.cache.get_seq_length() == LENGTH + 13
        assert relative_error(step.logits[:, -1], whole.logits[:, -1]) < 1e-5
        assert asked.logits.shape == (2, 12, 96)


def documents() -> list[torch.Tensor]:
    """Texts shorter and longer than the sliding window of 8 of the tiny models."""
    return [ids(1, length, seed=length) for length in (3, 12, 9, 2)]


def packed(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    places = [torch.arange(row.shape[1])[None] for row in rows]
    return {"input_ids": torch.cat(rows, -1), "position_ids": torch.cat(places, -1)}


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
    isolation = detect_document_masking(model)
    assert isolation == "position_ids"
    two = [packed(documents()), packed(documents()[::-1])]
    batch = {name: torch.cat([row[name] for row in two]) for name in two[0]}
    together = model(**mask_documents(batch, isolation), use_cache=False).logits
    alone = [
        torch.cat([model(row, use_cache=False).logits for row in rows], 1) for rows in (documents(), documents()[::-1])
    ]
    assert relative_error(together, torch.cat(alone)) < 1e-5
    weights = list(trainable_parameters(model).values())
    towards = torch.randn(together.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((torch.cat(alone) * towards).sum(), weights)
    found = torch.autograd.grad((together * towards).sum(), weights)
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kind", "place"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
def test_blockwise_attention_includes_the_prompt(kind: str, place: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(kind, **{place: 256})
    graft(model, OURS["prefix"])
    batch = packed([ids(1, 90), ids(1, 110)])
    rows = [{"input_ids": ids(2, 150)}, batch, {**batch, "labels": batch["input_ids"]}]
    plain = [model(**row, use_cache=False) for row in rows]
    weights = list(trainable_parameters(model).values())
    expected = torch.autograd.grad(plain[2].loss, weights)
    use_fast_paths(model)
    monkeypatch.setattr(attention, "plain_attention", None)
    for before, row in zip(plain[:2], rows, strict=False):
        assert relative_error(model(**row, use_cache=False).logits, before.logits) < 1e-5
    found = torch.autograd.grad(model(**rows[2], use_cache=False).loss, weights)
    assert all(relative_error(a, b) < 1e-4 for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "config"), [("mistral", PromptTuningConfig(12)), ("gemma3_text", PrefixTuningConfig(12))]
)
def test_a_prompt_may_be_longer_than_the_sliding_window(kind: str, config: Any, tmp_path: Path):
    model = tiny_model(kind)
    graft(model, config)
    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path).eval()
    assert relative_error(peft_logits(theirs), logits(model)) < 1e-5
    rows = documents()
    alone = torch.cat([logits(model, row) for row in rows], 1)
    assert relative_error(logits_of(model, packed(rows)), alone) < 1e-5
    tokens = ids(rows=2, length=7)
    options: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "eos_token_id": 1000}
    found = model.generate(tokens, max_new_tokens=9, do_sample=False, **options)
    assert torch.equal(found, continued(model, tokens, 9))


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


@torch.no_grad()
def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("method", ["prefix", "mlp"])
def test_gradients_of_a_run_equal_those_of_the_plain_loss(method: str):
    model = grafted("llama", method)
    records = [one[0].tolist() for one in documents()]
    blocks = pack(store_of(records), np.arange(len(records)), sum(map(len, records)), pad=0)
    batches = StepBatches(blocks, Collator("position_ids"), batch_size=1, seed=0)
    batch = batches.batch([0])
    labels = batch.pop("labels")
    loss = summed_loss(model(**batch).logits, labels) / batches.target_tokens(0)
    weights = trainable_parameters(model)
    expected = torch.autograd.grad(loss, list(weights.values()))
    use_fast_paths(model)
    found = Gradients(model, model, batches, start_accelerator("cpu")).step(0)[1]
    assert float(found) == pytest.approx(float(loss), rel=1e-5)
    for weight, gradient in zip(weights.values(), expected, strict=True):
        assert relative_error(weight.grad, gradient) < 1e-4


def test_the_prompt_takes_up_context(tmp_path: Path):
    name = save_tiny(tmp_path / "base")  # 64 learned positions
    model, tokenizer = load_model(name), byte_tokenizer()
    graft(model, PrefixTuningConfig(num_virtual_tokens=32))
    assert context_length(model) == 32
    use_fast_paths(model)
    text = generate_text(model, tokenizer, "a" * 29, 50, Sampling(temperature=0))
    assert len(tokenizer(text).input_ids) <= 2
    with pytest.raises(TsugikiError, match="32"):
        generate_text(model, tokenizer, "a" * 32, 1, Sampling())
    from tsugiki.data import Document

    windows = split_windows([Document("a" * 40, "x")], [40])
    assert evaluate(model, tokenizer, windows).split_windows == 1
    with disable_adapter(model):
        assert context_length(model) == 64
    save_adapter(model, tmp_path / "adapter")
    load_adapter(load_model(name), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (lambda: PromptTuningConfig(0), "^num_virtual_tokens"),
        (lambda: PrefixTuningConfig(True), "^num_virtual_tokens"),
        (lambda: PromptEncoderConfig(2.0), "^num_virtual_tokens"),
        (lambda: PromptTuningConfig(prompt_tuning_init="text"), "^prompt_tuning_init"),
        (lambda: PromptTuningConfig(prompt_tuning_init="TEXT"), "prompt_tuning_init TEXT .*prompt_tuning_init_text"),
        (lambda: PromptTuningConfig(prompt_tuning_init_text="a"), "prompt_tuning_init TEXT .*prompt_tuning_init_text"),
        (lambda: PrefixTuningConfig(init_weights="ones"), "^init_weights"),
        (
            lambda: PrefixTuningConfig(init_weights="SAMPLE_VOCAB", prefix_projection=True),
            "SAMPLE_VOCAB .*prefix_pro",
        ),
        (lambda: PrefixTuningConfig(prefix_projection="yes"), "^prefix_projection"),
        (lambda: PrefixTuningConfig(encoder_hidden_size=0), "^encoder_hidden_size"),
        (lambda: PromptEncoderConfig(encoder_reparameterization_type="GRU"), "^encoder_reparameterization_type"),
        (lambda: PromptEncoderConfig(encoder_num_layers=0), "^encoder_num_layers"),
    ],
)
def test_invalid_settings_are_refused(config: Any, said: str):
    with pytest.raises(TsugikiError, match=said):
        config()


def test_models_without_a_kv_cache_are_refused():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96}
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    without: list[Any] = [
        transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes)),
        transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=96, **bert)),
        transformers.MambaForCausalLM(transformers.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)),
        transformers.ViTForImageClassification(transformers.ViTConfig(**bert)),
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=32, num_layers=2)
        ),
        torch.nn.Sequential(torch.nn.Linear(3, 3)),
    ]
    for model in without:
        with pytest.raises(TsugikiError, match=f"{type(model).__name__}.*KV cache"):
            graft(model, OURS["prompt"])
        assert not is_grafted(model)


def test_a_prompt_that_fills_the_context_is_refused():
    for config in (PromptTuningConfig(33), PrefixTuningConfig(64), PromptEncoderConfig(80)):
        model = tiny_model()
        with pytest.raises(TsugikiError, match="64.* 32"):
            graft(model, config)
        assert not is_grafted(model)


def settings(folder: Path, method: str, method_config: dict[str, Any], **changes: Any) -> RunConfig:
    fields = {"method": method, "method_config": method_config, "batch_size": 4, "block_size": None}
    return run_config(folder, **{**fields, **changes})


def test_a_resumed_run_gives_the_same_bytes(tmp_path: Path):
    config = settings(tmp_path, "p-tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 8})
    whole = assert_resumes(train, config, 3)
    losses = [entry.loss for entry in whole.evaluations]
    assert losses[-1] == min(losses[1:]), "the best step is kept; the first loss is that of the base"
    other = train(settings(tmp_path, "prompt-tuning", {"num_virtual_tokens": 4}, out="other", max_steps=1))
    assert other.evaluations[0] == whole.evaluations[0]
    assert other.samples[0] == whole.samples[0]
    assert whole.data.block_size == 60
    assert whole.data.document_masking == "position_ids"
    folder = Path(config.out) / "whole"
    theirs = peft.PeftModel.from_pretrained(load_model(config.model), folder).eval()
    ours = load_model(config.model)
    load_adapter(ours, folder)
    assert relative_error(peft_logits(theirs), logits(ours)) < 1e-5


def test_an_untrained_prompt_on_a_bfloat16_base_keeps_the_fast_paths(tmp_path: Path):
    config = settings(tmp_path, "prefix-tuning", {}, model="embedded", base_dtype="bf16")
    model, tokenizer = load_model(config.model, load_dtype(config)), load_tokenizer(config.model)
    split = read_data(config, tokenizer, ProgressDisplay())
    data = pack_data(split, model, tokenizer, config.block_size, config.virtual_tokens)
    assert data.document_masking == "position_ids"
    torch.manual_seed(42)
    make_trainable(model, config)
    assert model.config._attn_implementation == "tsugiki"


@pytest.mark.parametrize(
    ("adapter", "changes", "said"),
    [
        ({"num_virtual_tokens": 8}, {"block_size": 57}, "block_size is 57.* 64 .*8 .* 56"),
    ],
)
def test_an_invalid_run_is_refused(adapter: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises((TsugikiError, ValueError), match=said):
        train(settings(tmp_path, "prompt-tuning", adapter, **changes))


def test_a_mask_of_documents_gives_the_same_as_positions():
    model = grafted("gpt2", "prefix")
    batch = packed(documents())
    by_positions = logits_of(model, batch)
    by_mask = mask_documents(batch, "attention_mask")
    assert relative_error(logits_of(model, by_mask), by_positions) < 1e-5
    seen = by_mask["attention_mask"] == 0
    assert relative_error(logits_of(model, {**by_mask, "attention_mask": seen}), by_positions) < 1e-5


def test_what_a_prompt_cannot_do_is_an_error():
    model = grafted("llama", "prompt")
    before = logits(model)
    with pytest.raises(TsugikiError, match="cannot be merged"):
        merge(model)
    assert torch.equal(logits(model), before)
    with pytest.raises(TsugikiError, match="cache of fixed length"):
        model.generate(ids(), cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="inputs_embeds"):  # raised by transformers
        model()
    local = grafted("gpt_neo", "prompt")  # its windows count positions in the row, including padding
    padded = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(TsugikiError, match="GPTNeoModel .*left"):
        local(ids(2, 4), attention_mask=padded)
    model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(TsugikiError, match="gradient_checkpointing_disable"):
        model(input_ids=ids(), labels=ids())
    model.eval()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("method", "fields", "said"),
    [
        ("prompt", {"num_virtual_tokens": 4}, "[5, 32], expected [4, 32]"),
        ("prompt", {"modules_to_save": ["lm_head"]}, "modules_to_save names 'lm_head'"),
        ("mlp", {"encoder_hidden_size": 13}, "tsugiki.network.0.weight is [12, 32], expected [13, 32]"),
        ("mlp", {"peft_type": "PROMPT_TUNING"}, "would change the result"),
        (
            "projected prefix",
            {"prefix_projection": False, "peft_type": "P_TUNING"},
            "tsugiki.network.4.weight",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(method: str, fields: dict[str, Any], said: str, tmp_path: Path):
    save_adapter(grafted("llama", method), tmp_path)
    edit_config(tmp_path, **fields)
    model = tiny_model("llama")
    with pytest.raises(TsugikiError) as caught:
        load_adapter(model, tmp_path)
    assert said in str(caught.value)
    assert not is_grafted(model)
