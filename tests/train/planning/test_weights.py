"""The planned bytes of a GGUF base that stays quantised, compared with the loaded model."""

from pathlib import Path

import pytest

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tsugiki.base.loading import load_model
from tsugiki.train.planning.weights import stored_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_are_those_of_the_loaded_model(tied: bool, tmp_path: Path):
    model = tiny_base("llama", hidden_size=64, intermediate_size=96, tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", model, Kind.Q4_0)
    parameters = {id(p): p for p in load_model(str(path), "stored").parameters()}
    assert stored_bytes(path) == sum(p.numel() * p.element_size() for p in parameters.values())
