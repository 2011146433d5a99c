"""Muon beside torch's, and its update beside the formula."""

from typing import Any

import pytest
import torch
from muon import muon_and_adamw, orthogonalized, plain_orthogonalized

from tests.tiny import ids, relative_error, seeded, tiny_model
from tsugiki.training import RunConfig

CONFIG = RunConfig(model="m", data="d", out="o", method="full", weight_decay=0.1, adam_beta2=0.9)


def learn(model: Any, optimizers: list[Any], steps: int) -> None:
    for step in range(steps):
        tokens = ids(seed=step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 72), (72, 24)])
def test_singular_values_come_near_one(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    matrix = torch.randn(shape, generator=seeded(0))
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values /= values.norm()
    for _iteration in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    exact = left @ values.diag() @ right
    for dtype, tolerance in (("bf16", 3e-2), ("fp32", 1e-5)):
        monkeypatch.setattr("muon.preferred_compute_dtype", lambda device, dtype=dtype: dtype)
        assert relative_error(orthogonalized(matrix), exact) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-3), ("bf16", 0.0)])
def test_long_matrices_take_the_same_step_by_their_gram_matrix(
    dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("muon.preferred_compute_dtype", lambda device: dtype)
    left, _, right = torch.linalg.svd(torch.randn(48, 160, generator=seeded(0)), False)
    matrix = left @ torch.logspace(0, -6, 48).diag() @ right  # as uneven as gradients may be
    for one in (matrix, matrix.T):
        assert relative_error(orthogonalized(one), plain_orthogonalized(one)) <= tolerance
        assert torch.equal(orthogonalized(one), plain_orthogonalized(one)) == (dtype == "bf16")


def test_it_is_muon_and_adamw(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("muon.preferred_compute_dtype", lambda device: "bf16")  # torch's, always
    ours, theirs = tiny_model("llama"), tiny_model("llama")
    learn(ours, [muon_and_adamw(ours, CONFIG, 0.01)], 3)
    layers = [p for name, p in theirs.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for p in theirs.parameters() if not any(p is layer for layer in layers)]
    learn(
        theirs,
        [
            torch.optim.Muon(layers, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([p for p in rest if p.ndim == 2], lr=0.01, weight_decay=0.1, betas=(0.9, 0.9)),
            torch.optim.AdamW([p for p in rest if p.ndim == 1], lr=0.01, weight_decay=0, betas=(0.9, 0.9)),
        ],
        3,
    )
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
