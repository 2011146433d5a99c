"""Compare losses in packed rows with those of single documents: `python -m benchmarks.quality.document_masking`.

For every model type that has default target layers, a tiny random model reads nine documents in packed rows of 40
tokens; attention windows are 8 tokens. A row of the table gives the largest difference between a token's loss in a
packed row and its loss when its document is alone, with the document masking that Tsugiki chooses and without any.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from tsugiki.data.blocks import Blocks, Collator, pack
from tsugiki.data.store import RecordIndex, TokenStore
from tsugiki.fast.document_masks import DocumentMasking, detect_document_masking
from tsugiki.model.context import IGNORE_INDEX

_LENGTHS = [5, 12, 3, 21, 9, 55, 17, 2, 30]
"""Tokens of the documents: shorter and longer than an attention window, and longer than a row."""
_ROW, _WINDOW, _VOCABULARY = 40, 8, 96
_SIZES: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 0,
}
_OPTIONAL_SIZES: dict[str, Any] = {
    "intermediate_size": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "num_key_value_heads": 4,
    "rotary_dim": 4,
    "sliding_window": _WINDOW,
    "use_sliding_window": True,
    "window_size": _WINDOW,
}
"""Set only where the config of a model type has the field."""


_MODEL_TYPES = (
    *(
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gptj",
        "gpt_neox",
        "bloom",
        "falcon",
        "opt",
        "phi",
        "phi3",
        "llama",
        "mistral",
    ),
    *("ministral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "cohere", "olmo2", "smollm3"),
)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| architecture | attention | document masking | difference with it | difference without | rows |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for model_type in _MODEL_TYPES:
        for attention in ("sdpa", "eager"):
            model = _tiny_model(model_type)
            try:
                model.set_attn_implementation(attention)
            except ValueError:
                continue
            if model.config._attn_implementation != attention:
                continue  # the architecture has only one attention implementation
            chosen = detect_document_masking(model)
            blocks = pack(_store(), np.arange(len(_LENGTHS)), _ROW, pad=0, share_rows=chosen != "separate_rows")
            shared = pack(_store(), np.arange(len(_LENGTHS)), _ROW, pad=0)
            print(
                f"| {model_type} | {attention} | {chosen} | {_difference(model, blocks, chosen):.1e} | "
                f"{_difference(model, shared, 'separate_rows'):.1e} | {len(blocks)} |"
            )


def _tiny_model(model_type: str) -> Any:
    """Create a random model of two layers; weights are scaled up so that attention affects the loss."""
    fields = AutoConfig.for_model(model_type).to_dict()
    optional = {name: value for name, value in _OPTIONAL_SIZES.items() if fields.get(name) is not None}
    if "head_dim" in fields:
        optional["head_dim"] = 8
    if "layer_types" in fields and "sliding_window" in optional:
        optional["layer_types"] = ["sliding_attention", "full_attention"]
    if "attention_types" in fields:  # GPT-Neo
        optional["attention_types"] = [[["global", "local"], 1]]
    config = AutoConfig.for_model(model_type, **_SIZES, **optional)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4)
    return model.eval()


def _store() -> TokenStore:
    """Return random documents of the lengths above; every token but a document's first is a target."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, _VOCABULARY, (length,), generator=generator).numpy() for length in _LENGTHS]
    count = len(_LENGTHS)
    index = RecordIndex(
        characters=np.array(_LENGTHS),
        digests=np.zeros((count, 16), np.uint8),
        signatures=np.zeros((count, 1), np.uint32),
        splittable=np.ones(count, bool),
        questions=np.zeros(count, np.uint64),
        answers=np.zeros(count, np.uint64),
        sources=[""] * count,
        fields=[{}] * count,
    )
    return TokenStore(
        index=index,
        ids=np.concatenate(ids).astype(np.uint16),
        loss_mask=np.concatenate([np.arange(length) > 0 for length in _LENGTHS]),
        offsets=np.cumsum([0, *_LENGTHS]),
    )


def _difference(model: nn.Module, blocks: Blocks, masking: DocumentMasking) -> float:
    """Return the largest difference between a token's loss in its row and in its segment alone."""
    collate = Collator(masking)
    largest = 0.0
    for number in range(len(blocks)):
        row = _losses(model, collate([blocks[number]]))[0]
        position = 0
        for segment in blocks.row(number):
            ids = torch.from_numpy(blocks.store.ids[segment.start : segment.start + segment.length].astype(np.int64))
            alone = _losses(model, {"input_ids": ids[None], "labels": ids[None]})[0]
            packed = row[position : position + segment.length - 1]
            largest = max([largest, *(packed - alone).abs().tolist()])
            position += segment.length
    return largest


@torch.no_grad()
def _losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each token after the first, [rows, length - 1]; 0 for tokens that are not targets."""
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:].flatten()
    losses = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
    return losses.view(labels[:, 1:].shape)


if __name__ == "__main__":
    main()
