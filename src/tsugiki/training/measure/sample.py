"""A few blocks of a model with random weights, to measure what a block of the whole model needs.

    config.json ──> the model with 1 to 6 blocks and 8192 words ──> grafted, with fast paths ──> forward, backward

Neither speed nor memory depends on the values of the weights, so none are read from the model's files. The input
requires a gradient, as the input of every block except the first one does.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.dtypes import BaseDtype, ComputeDtype, preferred_compute_dtype, quantized_dtype, torch_dtype
from tsugiki.fast.forward import has_chunked_loss, head_of
from tsugiki.fast.head import Head
from tsugiki.fast.loss import chunked_loss, plain_loss
from tsugiki.fast.paths import use_fast_paths
from tsugiki.lora.hold import is_grafted
from tsugiki.lowbit.quantization import is_quantizable, quantized_layer
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.meta import model_without_weights
from tsugiki.training.model.trainable import make_trainable
from tsugiki.training.settings.config import RunConfig

_WORDS = 8192  # the time of the loss is in proportion to the number of words
_MOST_BLOCKS = 6  # Gemma 3 repeats a pattern of six
_PARAMETERS = 40_000_000
"""Largest number of parameters of a sample with several blocks: small blocks are measured together."""
_PATTERN = 1 << 20


def sample_model(
    config: PretrainedConfig,
    blocks: int,
    base_dtype: BaseDtype,
    compute_dtype: ComputeDtype | None = None,
) -> PreTrainedModel:
    """Build the first `blocks` blocks of a model, whose config is given, with random weights in the dtype of a run.

    `compute_dtype` is that of what a quantised base keeps in 16 or 32 bits; None: the one that this machine prefers.
    """
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole, text.num_hidden_layers = text.num_hidden_layers, blocks
    for name, value in vars(text).items():
        if isinstance(value, list | tuple) and len(value) == whole:  # one entry for each block
            setattr(text, name, value[:blocks])
    text.vocab_size = min(_WORDS, text.vocab_size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, None)
    short.quantization_config = None
    short._name_or_path = ""  # of the files, whose vocabulary has another size
    model = model_without_weights(short)
    quantized = quantized_dtype(base_dtype) is not None
    dtype = torch_dtype((compute_dtype or preferred_compute_dtype()) if quantized else base_dtype)
    pattern = torch.randn(_PATTERN, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    head, head_path = model.get_output_embeddings(), ""
    for path, module in list(model.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = _filled(parameter, pattern)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if module is head:
            head_path = path
        elif quantized and is_quantizable(module):
            model.set_submodule(path, quantized_layer(path, module, dtype, "int8" if base_dtype == "int8" else "nf4"))
    model.tie_weights()
    if head_path and base_dtype in ("int8", "nf4-int8"):
        model.set_submodule(head_path, quantized_layer(head_path, model.get_submodule(head_path), dtype, "int8"))
    config_of: Any = model.config
    config_of.dtype = dtype
    return model


def blocks_of_sample(model: nn.Module) -> int:
    """Return how many blocks a sample of this model should have; the shapes of the model are enough."""
    blocks = decoder_blocks(model)
    size = max(1, sum(parameter.numel() for parameter in blocks[0].parameters()))
    return min(len(blocks), _MOST_BLOCKS, max(1, _PARAMETERS // size))


def prepare_sample(model: PreTrainedModel, config: RunConfig, device: torch.device, here: torch.device) -> None:
    """Prepare a sample in place as a run prepares its model for `device`, and move it to the device `here`."""
    model.to(here)
    make_trainable(model, config, device)
    if not is_grafted(model):
        use_fast_paths(model)
    elif device.type != "cpu":
        use_fast_paths(model, modules=False, loss=False)  # as `training.model.trainable.make_gradients` does
    model.train()


def forward(model: PreTrainedModel, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Compute the blocks of a prepared sample for random hidden states, and return these and the result."""
    x = hidden_states(model, rows, tokens)
    return x, model.base_model(inputs_embeds=x, use_cache=False)[0]


def backward(model: PreTrainedModel, x: Tensor, y: Tensor) -> None:
    """Compute the gradients of `y`, from `forward`, in `x` and in all weights that train."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A scalar, as in training: with `grad_outputs` PyTorch imports SymPy, whose memory a run does not take.
    torch.autograd.grad(y.sum(), [x, *weights], allow_unused=True)


def loss_and_gradient(model: PreTrainedModel, hidden: Tensor) -> None:
    """Compute the loss of hidden states with the vocabulary of a prepared sample, and its gradient in them."""
    labels = torch.randint(len(model.get_input_embeddings().weight), hidden.shape[:2], device=hidden.device)
    if has_chunked_loss(model):
        summed = chunked_loss(hidden, head_of(model), labels)
    else:
        summed = plain_loss(hidden, Head(model.get_output_embeddings()), labels)
    torch.autograd.grad(summed, hidden)


def hidden_states(model: PreTrainedModel, rows: int, tokens: int) -> Tensor:
    """Return random hidden states for a sample, [rows, tokens, width], which require a gradient."""
    width = model.get_input_embeddings().weight.shape[1]
    return torch.randn(rows, tokens, width).to(model.device, model.dtype).requires_grad_()


def _filled(parameter: Tensor, pattern: Tensor) -> Tensor:
    """Return a tensor of this shape that repeats the pattern."""
    value = torch.empty(parameter.numel(), dtype=pattern.dtype)
    for part in torch.split(value, len(pattern)):
        part.copy_(pattern[: len(part)])
    return value.view(parameter.shape)
