"""Experts with even numbers of rows compute what transformers' experts compute, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tiny import relative_error
from tests.tiny_types import lively_model
from tsugiki.fast import use_fast_paths, use_plain_paths


@pytest.mark.parametrize("of_a_token", [2, 3])
def test_every_expert_multiplies_a_multiple_of_eight_rows(of_a_token: int, monkeypatch: pytest.MonkeyPatch):
    rows, grouped_mm = list[int](), F.grouped_mm

    def noted(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        rows.extend(offs.diff(prepend=offs.new_zeros(1)).tolist())
        return grouped_mm(x, weight, offs=offs)

    monkeypatch.setattr(F, "grouped_mm", noted)
    model = lively_model("qwen3_moe", num_experts_per_tok=of_a_token).to(torch.bfloat16).requires_grad_(False)
    embedded = torch.randn(1, 37, model.config.hidden_size, dtype=torch.bfloat16, requires_grad=True)

    def computed() -> tuple[Tensor, Tensor, list[int]]:
        rows.clear()
        hidden = model.model(inputs_embeds=embedded, use_cache=False)[0]
        (gradient,) = torch.autograd.grad(hidden.square().sum(), embedded)
        return hidden.detach(), gradient, list(rows)

    (expected, gradient, uneven) = computed()
    use_fast_paths(model, attention=False, loss=False)
    (hidden, same_gradient, even) = computed()
    assert max(relative_error(hidden, expected), relative_error(same_gradient, gradient)) < 1e-2
    fills = [count for number, count in enumerate(even) if number % 4 or of_a_token == 2]  # the first takes the rest
    assert any(count % 8 for count in uneven)
    assert fills
    assert not any(count % 8 for count in fills)
    use_plain_paths(model)
    assert computed()[2] == uneven
