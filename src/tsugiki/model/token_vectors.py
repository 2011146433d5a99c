"""Trained vectors of single tokens, in the embedding and in an output head (PEFT's `trainable_token_indices`).

    embedding   token i  →  v_i · scale         for the chosen tokens; all others have the base's vectors
    head        logit i  =  v_i · h             the same v_i if head and embedding share a weight, as in small models

Only the vectors v [tokens, width] train and are stored. They replace rows of the base, so that nothing depends on the
values that new rows of a resized vocabulary happen to have. A hook computes them from the layer's input; no copy of the
whole weight is made.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.errors import TsugikiError
from tsugiki.model.linear import factor_dtype, is_linear
from tsugiki.model.names import matches
from tsugiki.model.undo import Undo, attach, attached
from tsugiki.model.ungrafted import base_modules, vocabulary_layers
from tsugiki.model.weights import quantized_copies, shared_parameters

TokenIndices: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]
"""Indices of tokens, for the embedding, or by names of layers."""


class TokenVectors(nn.Module):
    """The trained vectors [tokens, width] of some tokens, whose ids are in the order of the file."""

    indices: Tensor

    def __init__(self, indices: Sequence[int], vectors: Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.rows = {token: row for row, token in enumerate(indices)}
        self.register_buffer("indices", torch.tensor(indices, device=vectors.device), persistent=False)

    def embed(self, ids: Tensor, embedded: Tensor, scale: Tensor | float, padding: int | None = None) -> Tensor:
        """Return the embedding's output [..., width] for ids [...], with these vectors for the chosen tokens.

        The vector of the token `padding` gets no gradient from it, as in torch's `nn.Embedding`.
        """
        padding_row = None if padding is None else self.rows.get(padding)
        order = self.indices.argsort()
        place = torch.searchsorted(self.indices[order], ids).clamp(max=len(order) - 1)
        number = order[place]
        own = F.embedding(number, self.vectors, padding_row).to(embedded.dtype) * scale
        return torch.where((self.indices[number] == ids)[..., None], own, embedded)

    def score(self, hidden: Tensor, logits: Tensor) -> Tensor:
        """Return logits [..., vocabulary], with those of the chosen tokens computed from hidden states [..., width]."""
        own = F.linear(hidden, self.vectors.to(hidden.dtype))
        return logits.index_copy(-1, self.indices, own.to(logits.dtype))

    def updated(self, weight: Tensor) -> Tensor:
        """Return a weight [vocabulary, width] with these vectors as rows."""
        exact = weight.to(self.vectors.dtype)
        return exact.index_copy(0, self.indices.to(weight.device), self.vectors.to(weight.device))


def find_tokens(model: nn.Module, wanted: TokenIndices | None) -> dict[str, Sequence[int]]:
    """Return the layers whose tokens train, by name, each with the indices of the tokens."""
    if not wanted:
        return {}
    layers, ends = dict(base_modules(model)), list(vocabulary_layers(model))
    if not isinstance(wanted, Mapping):
        if not ends:
            raise TsugikiError(
                "a {kind} does not say which layer embeds tokens; name it: "
                "trainable_token_indices={{'embed_tokens': […]}}",
                kind=type(model).__name__,
            )
        wanted = {ends[0]: wanted}
    missing = [ending for ending in wanted if not any(matches(name, [ending]) for name in layers)]
    if missing:
        raise TsugikiError("trainable_token_indices names {name!r}, which the model does not have", name=missing[0])
    chosen = {
        name: indices  # the embedding first, because shared vectors are stored under its name
        for name in [*ends, *layers]
        for ending, indices in wanted.items()
        if matches(name, [ending])
    }
    for name, indices in chosen.items():
        layer = layers[name]
        if not (isinstance(layer, nn.Embedding) or is_linear(layer)):
            raise TsugikiError(
                "trainable_token_indices names {name}, a {kind}, which has no vectors of tokens",
                name=name,
                kind=type(layer).__name__,
            )
        if getattr(layer, "bias", None) is not None:
            raise TsugikiError(
                "trainable_token_indices names {name}, which has a bias that PEFT would leave out; train it as "
                "a whole (modules_to_save)",
                name=name,
            )
        rows = len(cast(Tensor, layer.weight))
        if max(indices) >= rows:
            raise TsugikiError(
                "trainable_token_indices has token {token}, but the vocabulary has {rows} words; call "
                "model.resize_token_embeddings({size}) first",
                token=max(indices),
                rows=rows,
                size=max(indices) + 1,
            )
    return chosen


def new_token_vectors(model: nn.Module, wanted: TokenIndices | None) -> dict[str, TokenVectors]:
    """Return the vectors of tokens by the names of their layers, with the base's values.

    Layers that share the weight of an embedding share its vectors, unless their lists of tokens differ. So does an
    output head with a quantised copy of the weight: its logits of these tokens are then computed from the vectors as
    they are. As in PEFT, vectors of the head alone are not those of the embedding.
    """
    layers, shared = dict(base_modules(model)), shared_parameters(model)
    chosen = find_tokens(model, wanted)
    vectors: dict[str, TokenVectors] = {}
    for name, indices in chosen.items():
        if name in vectors:
            continue
        weight = cast(Tensor, layers[name].weight)
        rows = weight[torch.tensor(indices, device=weight.device)].detach()
        vectors[name] = TokenVectors(indices, rows.to(factor_dtype(layers[name]), copy=True))
        if not isinstance(layers[name], nn.Embedding):
            continue
        others = [weight_name.removesuffix(".weight") for weight_name in shared.get(f"{name}.weight", ())]
        for other in (*others, *quantized_copies(model, f"{name}.weight")):
            if other not in vectors and list(chosen.get(other, indices)) == list(indices):
                vectors[other] = vectors[name]
    return vectors


def attach_vectors(layer: nn.Module, vectors: TokenVectors, undo: list[Undo]) -> None:
    """Let an embedding or an output head compute with these vectors."""
    attach(layer, vectors, undo, after=_replace)


def _replace(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    vectors: TokenVectors = attached(layer)
    x: Tensor = args[0] if args else kwargs["input"]
    if isinstance(layer, nn.Embedding):
        scale = getattr(layer, "embed_scale", 1.0)
        factor = scale.to(output.dtype) if isinstance(scale, Tensor) else scale
        return vectors.embed(x, output, factor, layer.padding_idx)
    return vectors.score(x, output)
