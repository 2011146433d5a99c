"""The results of AdapterHub's `adapters`, stored in `fixtures/adapterhub.safetensors`: the oracle of `test_bottleneck`.

`adapters` 1.3.0, the newest release, pins transformers ~= 4.57.6 and cannot be imported with transformers 5: its
`utils.py` imports `HfFolder`, which huggingface_hub has removed. So this file is also the script that writes the
fixture. Run it in a separate environment, from the repository root:

    pip install adapters==1.3.0 transformers==4.57.6 torch
    python -m tests.methods.adapterhub

The values of every parameter are computed from its name, so that both sides have the same model without a file of
weights. Everything is float64, in which the two agree up to rounding.
"""

import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURE = Path(__file__).parent / "fixtures" / "adapterhub.safetensors"
REDUCTION = 4
NAMES = {"houlsby": "double_seq_bn", "pfeiffer": "seq_bn"}
_WIDTH = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 24}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _WIDTH,
    "gptj": {**_WIDTH, "rotary_dim": 4},
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
        "vocab_size": 24,
    },
}
# The path of the blocks, and the sub-layers inside a block that get a bottleneck.
BLOCKS = {"gpt2": "transformer.h", "gptj": "transformer.h", "llama": "model.layers"}
SUBLAYERS = {"gpt2": ("attn", "mlp"), "gptj": ("attn", "mlp"), "llama": ("self_attn", "mlp")}
IDS = torch.arange(20).view(2, 10) * 7 % 24


def value(name: str, like: Tensor) -> Tensor:
    """Return the values of the parameter called `name`, in the shape and dtype of `like`."""
    wave = torch.sin(torch.arange(like.numel(), dtype=torch.float64) * 0.7 + zlib.crc32(name.encode()) % 1000)
    is_norm = like.dim() == 1 and name.endswith("weight")
    return (wave * 0.3 + is_norm).view(like.shape).to(like.dtype)


@torch.no_grad()
def fill(model: Any) -> None:
    """Set the parameters of a base to the values of their names."""
    for name, parameter in model.named_parameters():
        parameter.copy_(value(name, parameter))


def names_there(kind: str, method: str) -> dict[str, str]:
    """Return a mapping from our names of the adapter's parameters to AdapterHub's."""
    attention, feedforward = SUBLAYERS[kind]
    places = {attention: "attention_adapters", feedforward: "output_adapters"}
    if method == "pfeiffer":
        places = {"": "output_adapters"}
    return {
        f"{BLOCKS[kind]}.{i}{'.' if ours else ''}{ours}.adapter_{side}.{attribute}": (
            f"{BLOCKS[kind]}.{i}.{theirs}.adapters.a.adapter_{side}{'.0' if side == 'down' else ''}.{attribute}"
        )
        for i in range(2)
        for ours, theirs in places.items()
        for side in ("down", "up")
        for attribute in ("weight", "bias")
    }


def computed(kind: str, method: str) -> dict[str, Tensor]:
    """Return the logits and gradients that AdapterHub computes."""
    import transformers

    import adapters

    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind], attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    fill(model)
    adapters.init(model)
    settings = adapters.AdapterConfig.load(NAMES[method], reduction_factor=REDUCTION)
    model.add_adapter("a", config=settings)
    model.train_adapter("a")
    model.double().eval()
    parameters = dict(model.named_parameters())
    names = names_there(kind, method)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert trained == set(names.values()), sorted(trained)
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[theirs].copy_(value(ours, parameters[theirs]))
    logits = model(input_ids=IDS).logits
    logits.pow(2).mean().backward()
    return {
        f"{kind}.{method}.logits": logits.detach(),
        **{f"{kind}.{method}.gradient.{ours}": parameters[theirs].grad for ours, theirs in names.items()},
    }


if __name__ == "__main__":
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for kind in CONFIGS:
        for method in NAMES:
            tensors |= computed(kind, method)
    FIXTURE.parent.mkdir(exist_ok=True)
    save_file(tensors, FIXTURE)
