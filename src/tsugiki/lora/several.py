"""Several LoRA adapters at once: their updates are added, as in PEFT.

    y = W x + b + Σ s_i · B_i A_i dropout(x)  =  W x + b + [s_1 B_1 | s_2 B_2 | …] [A_1; A_2; …] dropout(x)

The factors are concatenated at each call, so that all of them train and the code for one pair computes the sum. The
adapters keep their parameters, and each is saved under its own name.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.pair import LowRank


class JoinedAdapter(LoraAdapter):
    """LoRA adapters that are active together. It shares their parameters, and cannot be saved."""


class JoinedPairs(LowRank):
    """The pairs that several adapters have for one layer."""

    def __init__(self, pairs: list[LowRank]) -> None:
        nn.Module.__init__(self)
        self.pairs = nn.ModuleList(pairs)
        self.A, self.B = pairs[0].A, pairs[0].B  # `activate_factors` reads the device from A
        self.scaling, self.dropout = 1.0, pairs[0].dropout
        for name in ("magnitude", "norms", "A0", "B0", "bias"):
            self.register_parameter(name, None)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the factors of the sum, A [Σ r, in] and B [out, Σ r]; B is multiplied by the scalings."""
        factors = [(*pair.factors(), pair.scaling) for pair in self.pairs if isinstance(pair, LowRank)]
        return torch.cat([A for A, _, _ in factors]), torch.cat([scaling * B for _, B, scaling in factors], 1)


def join_adapters(adapters: Mapping[str, object]) -> JoinedAdapter:
    """Return the sum of adapters of one model, by their names.

    Raises:
        TsugikiError: an adapter is not LoRA, or two of them change the same layer or parameter in a way that cannot be
            added.
    """
    pairs: dict[str, list[LowRank]] = {}
    joined: list[LoraAdapter] = []
    for name, adapter in adapters.items():
        if not isinstance(adapter, LoraAdapter):
            kind = type(adapter.config).__name__  # type: ignore[attr-defined]
            raise TsugikiError(
                _("{name!r} is not a LoRA adapter ({kind}), so it cannot be active together with others").format(
                    name=name, kind=kind
                )
            )
        joined.append(adapter)
        for path, pair in adapter.pairs.items():
            pairs.setdefault(path, []).append(pair)
    others = [
        path for part in joined for path in (*part.parameter_pairs, *part.modules, *part.parameters, *part.tokens)
    ]
    twice = next((path for path in others if others.count(path) > 1), None)
    if twice is not None:
        raise TsugikiError(
            _("several of {adapters} replace {path}; only one of them can be active").format(
                adapters=", ".join(adapters), path=twice
            )
        )
    for path, found in pairs.items():
        if len(found) > 1 and any(pair.magnitude is not None or pair.bias is not None for pair in found):
            raise TsugikiError(
                _("{path} has DoRA or lora_bias, whose updates cannot be added; activate one adapter").format(path=path)
            )
        if len({pair.dropout.p for pair in found}) > 1 or (len(found) > 1 and found[0].A.dim() != 2):
            raise TsugikiError(
                _(
                    "the adapters have different dropout for {path}, or it is a convolution, so their updates "
                    "cannot be computed at once; activate one adapter"
                ).format(path=path)
            )
    return JoinedAdapter(
        joined[0].config,
        {path: found[0] if len(found) == 1 else JoinedPairs(found) for path, found in pairs.items()},
        {path: part.modules[path] for part in joined for path in part.modules},
        {path: part.parameters[path] for part in joined for path in part.parameters},
        {path: part.parameter_pairs[path] for part in joined for path in part.parameter_pairs},
        {path: part.tokens[path] for part in joined for path in part.tokens},
    )
