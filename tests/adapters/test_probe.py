"""Whether an adapter changes the logits."""

from torch import nn

from tests.tiny import logits, shake, tiny_model
from tsugiki import LoraConfig, graft
from tsugiki.adapters import logit_shift


def test_a_new_adapter_has_no_effect_and_a_trained_one_has():
    model = tiny_model()
    graft(model, LoraConfig())
    assert logit_shift(model) == 0
    before = logits(shake(model))
    shift = logit_shift(model)
    assert shift is not None
    assert shift > 0
    assert (logits(model) == before).all()


def test_a_model_without_logits_has_no_shift():
    model = nn.Sequential(nn.Linear(4, 4))
    graft(model, LoraConfig(target_modules=["0"]))
    assert logit_shift(model) is None
