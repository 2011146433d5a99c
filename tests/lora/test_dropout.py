"""Dropout inside the frozen base."""

from tests.tiny import tiny_model
from tsugiki import LoraConfig, graft, ungraft


def test_dropout_of_the_base_is_switched_off_and_restored_in_both_forms():
    model = tiny_model("opt", dropout=0.3, attention_dropout=0.2, layerdrop=0.1)
    was = {(name, key): value for name, m in model.named_modules() for key, value in vars(m).items() if "drop" in key}
    assert {0.3, 0.2, 0.1} <= {value for value in was.values() if isinstance(value, float)}
    graft(model, LoraConfig())
    assert not [m for m in model.modules() for k, v in vars(m).items() if "drop" in k and isinstance(v, float) and v]
    ungraft(model)
    assert {(n, k): v for n, m in model.named_modules() for k, v in vars(m).items() if "drop" in k} == was
    graft(model, LoraConfig(), base_dropout=True)
    assert model.model.decoder.layers[0].dropout == 0.3
