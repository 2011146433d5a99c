"""The example that switches adapters of all families on one model."""

import one_of_each
import pytest

from tsugiki.methods import METHODS


@pytest.mark.slow
def test_adapters_of_all_families_are_switched_on_one_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(one_of_each, "STEPS", 4)
    one_of_each.main()
    lines = capsys.readouterr().out.splitlines()
    parts = [line.partition(" loss ") for line in lines]
    losses = [(name.strip(), float(rest.split()[0])) for name, is_one, rest in parts if is_one]
    assert [name for name, _ in losses] == ["base", *one_of_each.CHOSEN, "base again"]
    (_, before), *adapted, (_, after) = losses
    assert all(loss < before for _, loss in adapted)
    assert after == before
    assert lines[-1] == "identical to the base model: True"
    assert {METHODS[name].family for name in one_of_each.CHOSEN} == {"additive", "reparametrised", "selective"}
