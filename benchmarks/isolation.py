"""Packed against unpacked, for every architecture of the target table: `python -m benchmarks.isolation`.

Tiny random models, nine documents in rows of 40 tokens, attention windows of 8. For each way of isolation that a model
could be given: the largest difference between a token's loss in a packed row and where its document stands alone.
"""

from typing import get_args

import numpy as np
import torch
from tests.fast.test_document_masking import documents, lone_losses, packed_losses
from tests.tiny import store_of, tiny_model

from tsugiki.architectures import ARCHITECTURES
from tsugiki.data.blocks import pack
from tsugiki.fast.document_masking import DocumentMasking, detect_document_masking


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| architecture | attention | chosen | packed, as chosen | packed, nothing done | rows |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for kind in ARCHITECTURES:
        for attention in ("sdpa", "eager"):
            model = tiny_model(kind)
            try:
                model.set_attn_implementation(attention)
            except ValueError:
                continue
            if model.config._attn_implementation != attention:
                continue  # an architecture that knows one way alone
            chosen = detect_document_masking(model)
            blocks = pack(store_of(documents()), np.arange(9), 40, pad=0, share_rows=chosen != "rows")
            shared = pack(store_of(documents()), np.arange(9), 40, pad=0)
            print(
                f"| {kind} | {attention} | {chosen} | {_difference(model, blocks, chosen):.1e} | "
                f"{_difference(model, shared, 'rows'):.1e} | {len(blocks)} |"
            )


def _difference(model: torch.nn.Module, blocks: object, isolation: DocumentMasking) -> float:
    assert isolation in get_args(DocumentMasking)
    packed, alone = packed_losses(model, blocks, isolation), lone_losses(model, blocks)
    return max(abs(packed[token] - alone[token]) for token in alone)


if __name__ == "__main__":
    main()
