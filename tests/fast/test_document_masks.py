"""Documents that share a row: the loss of each token equals its loss when the document is alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.errors import refused
from tests.tiny import CONFIGS, DIFFERENT, ids, relative_error, seeded, store_of, tiny_model
from tests.tiny_types import lively_model, tiny_of
from tsugiki.data import Blocks, Collator, pack
from tsugiki.fast import (
    attends_to_later_tokens,
    detect_document_masking,
    document_masks,
    has_unknown_window,
    packed_masks,
    shares_prompts,
)
from tsugiki.lowbit import quantize
from tsugiki.model import IGNORE_INDEX, possible_windows

EXPECTED = dict.fromkeys(CONFIGS, "position_ids") | {"opt": "attention_mask", "bloom": "separate_rows"}
WITH_ATTENTION = [
    (kind, attention) for kind in CONFIGS for attention in ("sdpa", "eager") if attention == "sdpa" or kind in DIFFERENT
]


def documents() -> list[list[int]]:
    """Documents shorter and longer than the sliding window of 8, and longer than a row of 40."""
    generator = seeded(0)
    lengths = [5, 12, 3, 21, 9, 55, 17, 2, 30]
    return [torch.randint(1, 96, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def losses(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the loss of each token after the first, [rows, length - 1]; 0 for tokens that are no targets."""
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:].flatten()
    flat = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE_INDEX, reduction="none")
    return flat.view(labels[:, 1:].shape)


def packed_losses(model: Any, blocks: Blocks, masking: Any) -> dict[int, float]:
    """Return each token's loss in packed rows, two rows in a batch, by its number in the store."""
    found: dict[int, float] = {}
    collate = Collator(masking)
    for first in range(0, len(blocks), 2):
        rows = [blocks[i] for i in range(first, min(first + 2, len(blocks)))]
        for number, row in enumerate(losses(model, collate(rows))):
            filled = 0
            for piece in blocks.row(first + number):
                for i in range(1, piece.length):
                    assert piece.start + i not in found, "learned twice"
                    found[piece.start + i] = float(row[filled + i - 1])
                filled += piece.length
    return found


def lone_losses(model: Any, blocks: Blocks) -> dict[int, float]:
    """Return each token's loss, with each segment in a separate forward pass of only its ids."""
    found: dict[int, float] = {}
    for number in range(len(blocks)):
        for piece in blocks.row(number):
            ids = torch.from_numpy(blocks.store.ids[piece.start : piece.start + piece.length].astype(np.int64))[None]
            alone = losses(model, {"input_ids": ids, "labels": ids})[0]
            found |= {piece.start + i: float(alone[i - 1]) for i in range(1, piece.length)}
    return found


def difference(model: Any, masking: Any) -> tuple[float, int]:
    """Return the largest difference of a token's loss, packed and alone, and the number of rows."""
    blocks = pack(store_of(documents()), np.arange(9), 40, pad=0, share_rows=masking != "separate_rows")
    packed, alone = packed_losses(model, blocks, masking), lone_losses(model, blocks)
    assert packed.keys() == alone.keys()
    assert len(packed) == blocks.target_tokens == sum(map(len, documents())) - 9
    return max(abs(packed[i] - alone[i]) for i in packed), len(blocks)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "bloom"])
def test_the_masking_is_found_in_fewer_bits(kind: str, monkeypatch: pytest.MonkeyPatch):
    model = tiny_model(kind).bfloat16().train()
    assert detect_document_masking(model) == EXPECTED[kind]
    assert model.training
    monkeypatch.setattr(document_masks, "same_to_rounding", lambda a, b: False)  # as in a large model in 8 bits
    assert detect_document_masking(quantize(tiny_model(kind), torch.bfloat16, "int8")) == EXPECTED[kind]


def test_a_window_of_zero_is_none():
    assert possible_windows(tiny_model("llama", sliding_window=0)) == []
    assert possible_windows(tiny_model("llama", sliding_window=8)) == [8]


def model_with(attention: str, kind: str) -> Any:
    model = tiny_model(kind)
    try:
        model.set_attn_implementation(attention)
    except ValueError:
        pytest.skip(f"{kind} has no {attention} attention")
    return model


@pytest.mark.parametrize(("kind", "attention"), WITH_ATTENTION)
def test_a_packed_token_has_the_same_loss_as_alone(kind: str, attention: str):
    model = model_with(attention, kind)
    masking = detect_document_masking(model)
    assert masking == EXPECTED[kind]
    error, rows = difference(model, masking)
    assert error < 1e-5
    assert rows == (10 if masking == "separate_rows" else 4)


POSITIONS = torch.cat([torch.arange(9), torch.arange(4), torch.arange(11)]).repeat(2, 1)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if EXPECTED[kind] == "position_ids"])
def test_masks_of_packed_rows_are_those_that_the_model_makes(kind: str):
    model = tiny_model(kind)
    inputs = {"input_ids": ids(2, 24), "position_ids": POSITIONS, "use_cache": False}
    if has_unknown_window(model):
        with refused("no mask is known"):
            packed_masks(model.base_model, POSITIONS)
        return
    masks = packed_masks(model.base_model, POSITIONS)
    with torch.no_grad():
        found, expected = model(attention_mask=masks, **inputs).logits, model(**inputs).logits
    assert relative_error(found, expected) < 1e-5


def shared_states(model: Any, masking: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the hidden states of two answers to each of two prompts in one row, and those after their own prompt."""
    tokens, start, positions, alone = ids(1, 64), 0, [], []
    for prompt, *answers in ((12, 9, 14), (5, 21, 3)):
        begin, start = start, start + prompt
        positions.append(torch.arange(prompt))
        for answer in answers:
            own = torch.cat([tokens[:, begin : begin + prompt], tokens[:, start : start + answer]], 1)
            alone.append(model.base_model(input_ids=own, use_cache=False)[0][0, -answer:])
            positions.append(torch.arange(answer) + prompt)
            start += answer
    inputs = {"input_ids": tokens, "position_ids": torch.cat(positions)[None]}
    batch = document_masks.with_shared_prompts(model, document_masks.mask_documents(inputs, masking))
    states = model.base_model(**batch, use_cache=False)[0][0]
    return torch.cat([*states[12:35], *states[40:]]), torch.cat([one.flatten() for one in alone])


@pytest.mark.parametrize(("kind", "attention"), WITH_ATTENTION)
@torch.no_grad()
def test_answers_share_a_prompt_where_that_changes_nothing(kind: str, attention: str):
    model = model_with(attention, kind)
    assert shares_prompts(model, EXPECTED[kind]) == (kind not in ("bloom", "gpt_neo"))
    if shares_prompts(model, EXPECTED[kind]):
        assert relative_error(*shared_states(model, EXPECTED[kind])) < 1e-5


@pytest.mark.parametrize("kind", ["lfm2", "mamba"])
def test_convolutions_and_states_cannot_share_a_prompt(kind: str):
    model = lively_model(kind)
    for masking in ("position_ids", "attention_mask"):
        assert not shares_prompts(model, masking)


def test_a_prompt_is_not_shared_where_masks_are_not_used():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert not shares_prompts(model, "position_ids")
    wide = lively_model("gpt_oss", sliding_window=20)
    assert [shares_prompts(wide, "attention_mask", row_length) for row_length in (16, 40)] == [True, False]


@pytest.mark.parametrize("kind", ["gpt_oss", "afmoe"])
def test_a_mask_that_overrides_sliding_windows_is_not_used_in_longer_rows(kind: str):
    model = lively_model(kind, sliding_window=20)
    assert difference(model, "attention_mask")[0] > 1e-2
    assert detect_document_masking(model, row_length=40) == "separate_rows"
    wide = lively_model(kind, sliding_window=60)
    assert detect_document_masking(wide, row_length=40) == "attention_mask"
    assert difference(wide, "attention_mask")[0] < 1e-5


def assert_needs_separate_rows(model: Any) -> None:
    assert difference(model, "attention_mask")[0] > 1e-2
    assert detect_document_masking(model) == "separate_rows"


@pytest.mark.parametrize("kind", ["roberta", "camembert"])
def test_positions_that_count_from_the_padding_token_need_separate_rows(kind: str):
    assert_needs_separate_rows(lively_model(kind))


def test_a_window_that_is_shorter_than_the_documents_of_the_trial_needs_separate_rows():
    assert_needs_separate_rows(lively_model("gpt_oss", sliding_window=8))


@pytest.mark.parametrize("kind", ["hy_v4", "dots3_note_text"])
def test_attention_to_a_number_of_chosen_tokens_needs_separate_rows(kind: str):
    """Which of several tokens with one score are chosen depends on their places in the row."""
    model = lively_model(kind, index_topk=8)
    assert difference(model, "position_ids")[0] > 1e-3
    assert detect_document_masking(model, row_length=40) == "separate_rows"


def test_a_config_may_have_no_padding():
    assert not hasattr(tiny_of("codegen").config, "pad_token_id")
    assert detect_document_masking(tiny_of("codegen")) == "position_ids"


def test_rounding_of_experts_that_get_other_tokens_is_no_leak():
    model = lively_model("aria_text")
    assert detect_document_masking(model, row_length=40) == "position_ids"
    assert difference(model, "position_ids")[0] < 1e-5


@pytest.mark.parametrize(
    ("kind", "later"),
    [("bert encoder", True), ("xlnet", True), ("cpmant", True)]
    + [(kind, False) for kind in ("bert", "qwen3_moe", "lfm2", "mamba", "reformer")],
)
def test_which_models_attend_to_later_tokens(kind: str, later: bool):
    model = lively_model("bert", is_decoder=False) if kind == "bert encoder" else lively_model(kind)
    assert attends_to_later_tokens(model) == attends_to_later_tokens(model.bfloat16()) == later
