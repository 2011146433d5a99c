"""The planned bytes of a model's weights, compared with the loaded model."""

from pathlib import Path

import pytest

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.runs import run_config
from tsugiki.base import load_meta_model, load_model
from tsugiki.training import loading_bytes, plan_run, sample_model, stored_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_the_bytes_are_those_of_the_loaded_model(tied: bool, tmp_path: Path):
    model = tiny_base("llama", hidden_size=64, intermediate_size=96, tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "tiny.gguf", model, Kind.Q4_0)
    parameters = {id(p): p for p in load_model(str(path), "stored").parameters()}
    assert stored_bytes(path) == sum(p.numel() * p.element_size() for p in parameters.values())


def test_a_sample_of_a_gguf_file_has_its_types(tmp_path: Path):
    base = tiny_base("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=4)
    kinds = {f"blk.{place}.": kind for place, kind in enumerate([Kind.Q8_0, Kind.Q4_0, Kind.Q5_0, Kind.F16])}
    path = write_gguf(tmp_path / "tiny.gguf", base, lambda name: kinds.get(name[:6], Kind.F32))
    loaded = load_model(str(path), "stored").model.layers
    for count, places in ((1, [2]), (2, [1, 3]), (4, [0, 1, 2, 3])):
        sample = sample_model(load_meta_model(str(path)).config, count, "stored", path).model.layers
        for block, place in zip(sample, places, strict=True):
            assert [str(layer) for layer in block.modules()] == [str(layer) for layer in loaded[place].modules()]


@pytest.mark.parametrize(("tied", "largest"), [(True, 64 * 96), (False, 512 * 64)])
def test_an_embedding_needs_nothing_more_while_it_is_loaded_but_a_head_to_quantise_does(tied: bool, largest: int):
    model = tiny_base("llama", hidden_size=64, intermediate_size=96, vocab_size=512, tie_word_embeddings=tied)
    assert loading_bytes(model, "int8") == loading_bytes(model, "nf4-int8") == 4 * largest
    assert loading_bytes(model, "nf4") == 4 * 64 * 96, "the head keeps 16 bits"
    assert loading_bytes(model, "bf16") == loading_bytes(model, "stored") == 4 * 512 * 64


def test_a_gguf_file_is_planned_in_all_dtypes(tmp_path: Path):
    base = tiny_base("llama", hidden_size=64, intermediate_size=96)
    path = write_gguf(tmp_path / "tiny.gguf", base, Kind.Q4_0)
    found = plan_run(run_config(tmp_path, model=str(path)), None)
    assert {option.base_dtype for option in found.options} >= {"int8", "stored", "nf4"}
