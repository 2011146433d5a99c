"""The rotation, compared with the product of the Hadamard matrix in float64."""

import pytest
import torch

from tsugiki.lowbit import blocks_of, plain_rotated, rotated


def _matrix(width: int, blocks: int) -> torch.Tensor:
    """Return R = H ⊗ I in float64, with H by Sylvester's construction."""
    h, two = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    while len(h) < blocks:
        h = torch.kron(two, h)
    return torch.kron(h, torch.eye(width // blocks, dtype=torch.float64)) / blocks**0.5


@pytest.mark.parametrize(("width", "blocks"), [(768, 64), (64, 64), (48, 16), (12, 4), (7, 1), (320, 64), (4, 4)])
def test_rows_are_multiplied_by_the_hadamard_matrix(width: int, blocks: int):
    assert blocks_of(width) == blocks
    x = torch.randn(5, width)
    expected = x.double() @ _matrix(width, blocks)
    for result in (plain_rotated(x, blocks), rotated(x.clone(), blocks)):
        torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
