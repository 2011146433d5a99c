"""Write the fingerprints of the embedded base's pretraining texts, with which `tsugiki eval` recognises them.

    python examples/embedded_base/learned_documents.py modern.jsonl src/tsugiki/assets/base

`modern.jsonl` is made as pretrain.yaml says. The split is that of the recipe, so the held-out author is left out.
"""

import sys
from pathlib import Path

import numpy as np

from tsugiki.data.duplicates import near_duplicates
from tsugiki.data.read.files import read_records
from tsugiki.data.seen_texts import fingerprints, write_fingerprints
from tsugiki.data.splits import FieldCondition, split_records
from tsugiki.data.store import read_index


def main(data: str, out: Path) -> None:
    """Write the fingerprints of the training records in `data` into the folder `out`."""
    index = read_index(read_records(data))
    held_out = split_records(index, FieldCondition("person_id", "000040"), 0, near_duplicates(index.signatures))
    learned = np.setdiff1d(np.arange(len(index)), held_out)
    write_fingerprints([fingerprints(index, learned)], out)
    print(f"{len(learned):,} documents, {int(index.characters[learned].sum()):,} characters")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
