"""Tiny random models of the architectures that users bring."""

from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from tsugiki import graft, save_adapter
from tsugiki.data import RecordIndex, TokenStore
from tsugiki.lora import LoraConv2d, LoraLinear
from tsugiki.model import IGNORE_INDEX

_WIDTHS: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32}
_SIZES = {**_WIDTHS, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
_SLIDING = {**_LLAMA, "head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    **dict.fromkeys(("llama", "qwen2", "granite", "cohere", "olmo2"), _LLAMA),
    "qwen3": {**_LLAMA, "head_dim": 8},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "gemma": {**_LLAMA, "head_dim": 8},
    **dict.fromkeys(("gemma2", "gemma3_text", "ministral"), _SLIDING),
    "phi": {**_LLAMA, "num_key_value_heads": 4, "pad_token_id": 0, "eos_token_id": 0},
    "gpt_neox": {**_LLAMA, "num_key_value_heads": 4},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "bloom": {**_WIDTHS, "n_layer": 2, "n_head": 4},
    "gpt_neo": {
        **_WIDTHS,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gptj": {**_GPT2, "rotary_dim": 4},
    "falcon": _SIZES,
    "phi3": {**_LLAMA, "pad_token_id": 0},
    "smollm3": {**_LLAMA, "pad_token_id": 0},
}
EXPORTED: dict[str, dict[str, Any]] = {
    "gemma4_text": {
        **_SLIDING,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "final_logit_softcapping": 30.0,
    },
    "lfm2": {**_LLAMA, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    "qwen3_5_text": {
        **_LLAMA,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
"""Types that are built for the tests of GGUF files alone."""

DIFFERENT = ("gpt2", "llama", "gemma3_text", "opt", "phi3", "bloom")
"""Types of which no two meet the same code: Conv1D, heads, windows and norms, biases, joined layers, no positions."""


def summed_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of all target tokens, by the definition; labels are not shifted."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        exact[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def tiny_model(kind: str = "gpt2", seed: int = 0, **overrides: Any) -> Any:
    """A two-layer random model; one seed always gives the same weights, biases away from zero."""
    config = transformers.AutoConfig.for_model(kind, **{**(CONFIGS | EXPORTED)[kind], **overrides})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "gpt2" in kind and "c_" in name:
                parameter.mul_(4)  # GPT-2's small initial weights would hide errors
    return model.eval()


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of random numbers, always the same ones."""
    return torch.Generator().manual_seed(seed)


def ids(rows: int = 2, length: int = 12, vocabulary: int = 96, seed: int = 1) -> torch.Tensor:
    """Random token ids, [rows, length]."""
    return torch.randint(0, vocabulary, (rows, length), generator=seeded(seed))


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """The model's logits, evaluation mode."""
    was = model.training
    model.eval()
    out: torch.Tensor = model(input_ids=ids() if tokens is None else tokens).logits
    model.train(was)
    return out


def shake(model: Any, seed: int = 3) -> Any:
    """Add noise to every trainable parameter, in place of training."""
    generator = seeded(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda pair: pair[0]):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def grafted(model: Any, config: Any, seed: int = 3) -> Any:
    """Graft an adapter into a model and add noise to its parameters; returns the model."""
    torch.manual_seed(0)
    graft(model, config)
    return shake(model, seed)


def save_grafted(folder: Any, model: Any, config: Any, seed: int = 3) -> Any:
    """Save the adapter of `grafted` in a folder; returns the model."""
    save_adapter(grafted(model, config, seed), folder)
    return model


def train_steps(model: Any, steps: int, lr: float = 1e-2) -> None:
    """Train with AdamW, on another batch in each step; the gradients of the last step are kept."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for seed in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids(seed=seed), labels=ids(seed=seed)).loss.backward()
        optimizer.step()


def in_pairs(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrise a test so that any two values of different axes meet in a case: fewer cases than the product."""
    cases = list(product(*(range(len(list(values))) for values in axes.values())))
    left = {pair for case in cases for pair in combinations(enumerate(case), 2)}
    chosen = []
    while left:
        best = max(cases, key=lambda case: len(left & set(combinations(enumerate(case), 2))))
        left -= set(combinations(enumerate(best), 2))
        chosen.append(best)
    values = [list(axis) for axis in axes.values()]
    return pytest.mark.parametrize(
        list(axes), [tuple(axis[at] for axis, at in zip(values, case, strict=True)) for case in chosen]
    )


def by_definition(module: Any) -> Any:
    """Let all layers compute as `tsugiki.lora` defines, without the products of `tsugiki.fast`."""
    for layer in module.modules():
        vars(layer).pop("in_place_of", None)
        if isinstance(layer, LoraLinear | LoraConv2d):
            vars(layer).pop("forward", None)
    return module


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def byte_tokenizer(template: str | None = None) -> Any:
    """A tokenizer of single bytes with one special token, 257 ids: a character of Japanese is three tokens.

    `template` is its chat template; by default it has none.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end, chat_template=template
    )


_SAVED: dict[tuple[str, int, str], tuple[dict[str, bytes], torch.Tensor]] = {}
"""Kind, seed and settings of a model -> its files, which a process makes once, and torch's random state after that."""


def save_tiny(folder: Any, kind: str = "gpt2", seed: int = 0, template: str | None = None, **overrides: Any) -> str:
    """A tiny model with the byte tokenizer and this chat template as an ordinary model folder; returns its path."""
    key, to = (kind, seed, repr(sorted(overrides.items()))), Path(folder)
    if key not in _SAVED:
        with TemporaryDirectory() as made:
            tiny_model(kind, seed, **{"vocab_size": 257, **overrides}).save_pretrained(made)
            byte_tokenizer().save_pretrained(made)
            files = {path.name: path.read_bytes() for path in Path(made).iterdir()}
            _SAVED[key] = files, torch.get_rng_state()
    files, state = _SAVED[key]
    torch.set_rng_state(state)
    to.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (to / name).write_bytes(content)
    if template is not None:
        byte_tokenizer(template).save_pretrained(folder)
    return str(folder)


def store_of(records: list[list[int]], prompts: dict[int, int] | None = None) -> Any:
    """A token store in memory: a record for each list of ids.

    `prompts` (number of a record -> tokens of its prompt) makes records that are cut off, not documents.
    """
    prompts = prompts or {}
    loss_mask = [[position >= prompts.get(i, 1) for position in range(len(ids))] for i, ids in enumerate(records)]
    index = RecordIndex(
        characters=np.array([len(ids) for ids in records]),
        digests=np.zeros((len(records), 16), np.uint8),
        signatures=np.zeros((len(records), 1), np.uint32),
        splittable=np.array([i not in prompts for i in range(len(records))]),
        questions=np.zeros(len(records), np.uint64),
        answers=np.zeros(len(records), np.uint64),
        sources=[f"data:{i + 1}" for i in range(len(records))],
        fields=[{} for _ in records],
    )
    return TokenStore(
        index=index,
        ids=np.array([token for ids in records for token in ids], np.uint16),
        loss_mask=np.array([one for row in loss_mask for one in row]),
        offsets=np.cumsum([0, *map(len, records)]),
    )


TEXT = "".join(f"第{i}の朝、庭師は枝を{i * 7 % 10}本切り、{'雨' if i % 3 else '風'}の音を聞いた。\n" for i in range(60))
"""Text of our own to train on."""
