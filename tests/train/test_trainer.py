"""The loop of a run: compared with a plain loop, and batches with accumulation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.runs import uneven_blocks
from tests.tiny import byte_tokenizer, tiny_model
from tsugiki import LoraConfig, graft, trainable_parameters
from tsugiki.data.blocks import Blocks
from tsugiki.fast.document_masks import detect_document_masking
from tsugiki.labels import IGNORE_INDEX
from tsugiki.train.config import RunConfig
from tsugiki.train.run import build_trainer
from tsugiki.train.workflows.preview import rows_in_order


def train_blocks(kind: str, blocks: Blocks, out: Path, batch_size: int, grad_accum: int, seed: int = 0) -> Any:
    model = tiny_model(kind, vocab_size=257)
    torch.manual_seed(seed)
    graft(model, LoraConfig(r=4, lora_alpha=8))
    config = RunConfig(
        model="-", data="-", out=str(out), epochs=2, batch_size=batch_size, grad_accum=grad_accum, learning_rate=1e-2
    )
    trainer = build_trainer(config, model, byte_tokenizer(), blocks, detect_document_masking(model))
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "opt", "bloom"])
def test_batch_8_is_accumulation_8_also_with_uneven_rows(kind: str, tmp_path: Path):
    blocks = uneven_blocks()
    wide, together = train_blocks(kind, blocks, tmp_path / "a", 8, 1)
    narrow, apart = train_blocks(kind, blocks, tmp_path / "b", 1, 8)
    assert together.meters.tokens == apart.meters.tokens == 2 * blocks.target_tokens
    assert together.meters.nll == pytest.approx(apart.meters.nll, rel=1e-5)
    for (name, a), (_, b) in zip(wide.named_parameters(), narrow.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_the_run_is_a_plain_loop_with_adamw_and_token_weighted_loss(tmp_path: Path):
    blocks = uneven_blocks()
    ours, trainer = train_blocks("gpt2", blocks, tmp_path / "run", 2, 2, seed=7)

    order: list[int] = []
    probe = [{"input_ids": torch.tensor([row]), "position_ids": torch.tensor([0])} for row in range(16)]
    for epoch in range(2):
        loader = trainer._get_dataloader(probe, "order", 2, sampler_fn=trainer._get_train_sampler, is_training=True)
        loader.set_epoch(epoch)
        order += [int(row[0]) for batch in loader for row in batch["input_ids"]]
    assert sorted(order) == sorted([*range(16), *range(16)])
    assert rows_in_order(trainer, 10) == order[:10]

    # PEFT's layer, one loop, no Trainer: mean over the learned tokens of the step, AdamW, linear decay.
    theirs = tiny_model("gpt2", vocab_size=257)
    torch.manual_seed(7)
    graft(theirs, LoraConfig(r=4, lora_alpha=8))
    trained = list(trainable_parameters(theirs).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for step in range(8):
        rows = order[step * 4 : step * 4 + 4]
        ids, labels = (torch.stack([blocks[row][name] for row in rows]) for name in ("input_ids", "labels"))
        loss = F.cross_entropy(
            theirs(input_ids=ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (8 - step) / 8
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
