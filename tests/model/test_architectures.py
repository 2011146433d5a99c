"""The table of architectures."""

import pytest

from tests.tiny import CONFIGS, tiny_model
from tsugiki.model import ARCHITECTURES, architecture_of, base_modules
from tsugiki.model.names import matches


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind in ARCHITECTURES])
def test_every_name_of_a_row_is_in_the_model(kind: str):
    model = tiny_model(kind)
    row = architecture_of(model)
    assert row is ARCHITECTURES[kind]
    for name in (*(row.target_modules or ()), *(row.ia3_outputs or ())):
        assert any(matches(path, [name]) for path, _ in base_modules(model)), name
