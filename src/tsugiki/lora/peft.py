"""Convert PEFT's `LoraConfig` to Tsugiki's. It is recognised by its attributes, so PEFT need not be installed."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig

_NO_EFFECT = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        # each matters only together with another setting, which is refused
        *("megatron_core", "qalora_group_size"),
    }
)
"""Settings that do not change what a new adapter computes."""


@runtime_checkable
class PeftConfig(Protocol):
    """A config of PEFT."""

    peft_type: Any

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name."""


def config_of_peft(config: PeftConfig) -> LoraConfig:
    """Return the settings of PEFT's `LoraConfig` for a new adapter.

    Raises:
        TsugikiError: it is the config of another method, or has a setting that would change the result and is not
            supported.
    """
    kind = type(config).__name__
    if getattr(config.peft_type, "value", config.peft_type) != "LORA":
        raise TsugikiError(
            _(
                "graft takes PEFT's LoraConfig, and not its {kind}; the config of another method is "
                "tsugiki.methods.table.METHODS[name].configure({{…}}), with a name that `tsugiki methods` lists"
            ).format(kind=kind)
        )
    known = {field.name for field in dataclasses.fields(LoraConfig)} | {"inference_mode"}
    settings: dict[str, Any] = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
        if name not in _NO_EFFECT and value not in (None, {}, [])
    }
    unknown = [
        f"{name}={error_text(repr(value), 80)}" for name, value in settings.items() if name not in known and value
    ]
    if unknown:
        raise TsugikiError(
            _("{kind}: {unknown} would change the result and is not supported; leave it out").format(
                kind=kind, unknown=", ".join(unknown)
            )
        )
    if "target_parameters" in settings:
        settings.setdefault("target_modules", [])  # PEFT then adapts these parameters alone
    return LoraConfig(**{name: value for name, value in settings.items() if name in known})
