from pathlib import Path

import pytest
import torch
import transformers

from tests.tiny import CONFIGS, ids, tiny_model
from tsugiki.model import replica_in


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma3_text", "bloom"])
def test_a_replica_computes_as_the_model_loaded_in_bfloat16(kind: str, tmp_path: Path):
    """The oracle is transformers' own loading; the positions are those where rounded frequencies are far off."""
    longer = (
        {}
        if kind == "bloom"
        else {"n_positions" if "n_positions" in CONFIGS[kind] else "max_position_embeddings": 2048}
    )
    model = tiny_model(kind, **longer)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    replica = replica_in(torch.bfloat16, model)
    positions = {} if kind == "bloom" else {"position_ids": torch.arange(2000, 2012)[None]}
    tokens = ids(rows=1)
    with torch.no_grad():
        assert torch.equal(replica(tokens, **positions).logits, loaded(tokens, **positions).logits)
    assert all(p.dtype == torch.bfloat16 for p in replica.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_frequencies_keep_their_digits():
    model = tiny_model("llama")
    replica = replica_in(torch.bfloat16, model)
    assert replica.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(replica.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
