"""The order of an epoch is that of `torch.randperm`, so that seeded runs give the same results in every version."""

import numpy as np
import torch

from tests.tiny import store_of
from tsugiki.data import Collator, StepBatches, pack


def test_every_epoch_has_the_random_order_of_its_seed():
    blocks = pack(store_of([[1, 2, 3]] * 11), np.arange(11), 3, pad=0)
    batches = StepBatches(blocks, Collator("position_ids"), batch_size=4, seed=7)
    for epoch in range(3):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(7 + epoch)).tolist()
        taken = [batches.rows(3 * epoch + step) for step in range(3)]
        assert taken == [order[:4], order[4:8], order[8:]]
