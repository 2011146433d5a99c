"""Tables, bars and the page of an adapter."""

from pathlib import Path

import pytest
import torch

from tests.adapters.folders import lora_of, write
from tests.report.pages import assert_whole, record
from tests.tiny import save_grafted, tiny_model
from tsugiki import LoraConfig
from tsugiki.adapters import LayerFactors, Provenance, read_lora_weights, write_lora_weights
from tsugiki.methods import METHODS
from tsugiki.report import (
    adapter_page,
    bars,
    decompose,
    info_lines,
    inspect_adapter,
    kinds_table,
    layers_table,
    tensors_table,
)


def test_every_layer_has_a_row_in_the_order_of_the_blocks(tmp_path: Path):
    adapter = inspect_adapter(write(tmp_path / "a", blocks=12))
    _, rows = layers_table(adapter.layers)
    assert [row[0] for row in rows] == [f"transformer.h.{block}.attn.c_attn" for block in range(12)]
    layer = read_lora_weights(tmp_path / "a").layers["transformer.h.10.attn.c_attn"]
    delta = layer.scaling * layer.B.double() @ layer.A.double()
    values = torch.linalg.svdvals(delta)[:4]
    shares = values / values.sum()
    assert rows[10][1:3] == ["96×32", "4"]
    expected = torch.stack([delta.norm(), values[0], (-(shares * shares.log()).sum()).exp()])
    assert [float(cell) for cell in rows[10][3:6]] == pytest.approx(expected.tolist(), rel=2e-3)
    assert kinds_table(adapter.layers)[1][0][:2] == ["attn.c_attn", "12"]


def test_blocks_of_two_lists_are_distinguished():
    layer = next(iter(lora_of().layers.values()))
    layers = {"text.layers.0.q": layer, "vision.layers.0.q": layer, "lm_head": layer}
    assert [one.kind for one in decompose(layers)] == ["text.layers.*.q", "vision.layers.*.q", "lm_head"]


def test_bars():
    assert bars([8, 4, 1, 0]) == "█▄▁ "
    assert bars([0, 0]) == "  "
    assert bars([1e-9, 1]) == "▁█"
    assert len(bars(range(1, 300))) == 16
    assert bars(range(1, 300))[0] == "▁"


def test_the_page_is_self_contained(tmp_path: Path):
    folder = tmp_path / "庭 <b>"
    write_lora_weights(lora_of(), folder, Provenance(operation="test", settings={"energy": [0.5, 1]}))
    record().write(folder)
    adapter = inspect_adapter(folder)
    page = assert_whole(adapter_page(adapter))
    assert page.tags.count("svg") == 5
    for said in ("Adapter · 庭 <b>", "On 12 texts that", "庭の梅は", "all 2 layers", "Roy & Vetterli 2007"):
        assert said in page.text, said
    assert len(page.table("layer")) == 3
    assert {("trained on", "庭.txt"), ("operation", "test"), ("energy", "[0.5, 1]")} <= {*info_lines(adapter)}


def test_a_zero_adapter_has_a_note(tmp_path: Path):
    lora = lora_of()
    silent = {path: LayerFactors(one.A, 0 * one.B, one.scaling) for path, one in lora.layers.items()}
    write_lora_weights(type(lora)(lora.config, silent, {}, lora.base, None), tmp_path / "a", None)
    adapter = inspect_adapter(tmp_path / "a")
    assert "zero" in adapter.notes[0].text
    assert layers_table(adapter.layers)[1][0][3:6] == ["0.000", "0.000", "0.00"]
    assert_whole(adapter_page(adapter))


def test_dora_shows_its_low_rank_part_with_a_note(tmp_path: Path):
    save_grafted(tmp_path / "a", tiny_model(), LoraConfig(use_dora=True, use_rslora=True))
    adapter = inspect_adapter(tmp_path / "a")
    assert adapter.info.method == "rslora + dora"
    assert "low-rank part" in adapter.notes[0].text
    assert adapter.layers


@pytest.mark.parametrize("method", ["prompt-tuning", "ia3", "bitfit", "houlsby"])
def test_other_methods_show_their_tensors(method: str, tmp_path: Path):
    save_grafted(tmp_path / "a", tiny_model(), METHODS[method].configure({}))
    adapter = inspect_adapter(tmp_path / "a")
    assert (adapter.info.method, adapter.info.ranks, list(adapter.layers)) == (method, (), [])
    _, rows = tensors_table(adapter.tensors)
    assert rows
    assert all(float(row[3]) > 0 for row in rows)
    assert "Tensors" in assert_whole(adapter_page(adapter)).text
