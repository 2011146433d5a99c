"""Parameters with several names, before a graft and after."""

from tests.tiny import tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.model.weights import shared_parameters

TIED = ["transformer.wte.weight", "lm_head.weight"]


def test_tied_embeddings_are_found_also_in_a_grafted_model():
    model = tiny_model()
    assert shared_parameters(model) == dict.fromkeys(TIED, TIED)
    graft(model, LoraConfig(r=2, target_modules=["c_attn", "wte"]))
    assert shared_parameters(model) == dict.fromkeys(TIED, TIED)


def test_a_model_without_tied_parameters():
    assert shared_parameters(tiny_model("llama")) == {}
