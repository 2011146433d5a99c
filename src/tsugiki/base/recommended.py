"""Base models that a laptop trains, by the language that they write.

Names, licences and sizes are those of the models' pages on the hub. docs/models.md names the pages, and says how
the minutes were found.
"""

from dataclasses import dataclass

from tsugiki.language import ENGLISH, JAPANESE, _, language, marked


@dataclass(frozen=True)
class RecommendedBase:
    """A base model on the hub."""

    language: str
    name: str
    parameters: int
    """In millions."""
    download: int
    """Size of the weights in MB."""
    minutes: int
    """Time of a run with the default settings on a text of 100,000 characters, on two cores without bfloat16."""
    license: str
    """The id of the licence on the hub, or the name that its card gives."""
    condition: str = ""
    """What else is needed: to accept terms on the hub, or an optional dependency for the tokenizer."""
    gguf: str = ""
    """A GGUF file of it on the hub, as USER/NAME/FILE, into which an adapter can be merged."""


_GATED, _SENTENCEPIECE = marked("terms to accept"), marked("needs sentencepiece")
_GEMMA_GGUF = "ggml-org/gemma-3-270m-GGUF/gemma-3-270m-Q8_0.gguf"


RECOMMENDED = (
    RecommendedBase(JAPANESE, "LiquidAI/LFM2.5-350M", 354, 709, 55, "lfm1.0"),
    RecommendedBase(JAPANESE, "google/gemma-3-270m", 268, 536, 36, "gemma", _GATED, _GEMMA_GGUF),
    RecommendedBase(JAPANESE, "rinna/japanese-gpt2-small", 110, 454, 17, "mit", _SENTENCEPIECE),
    RecommendedBase(JAPANESE, "rinna/japanese-gpt2-medium", 336, 1370, 50, "mit", _SENTENCEPIECE),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-135M", 135, 269, 12, "apache-2.0"),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-135M-Instruct", 135, 269, 12, "apache-2.0"),
    RecommendedBase(ENGLISH, "HuggingFaceTB/SmolLM2-360M", 362, 724, 35, "apache-2.0"),
)


def recommended_bases() -> list[RecommendedBase]:
    """Return the bases that write the reader's language."""
    return [base for base in RECOMMENDED if base.language == language()]


def describe_base(base: RecommendedBase) -> str:
    """Return a line of a table: name, parameters, download, minutes and licence."""
    license_id = base.license
    if base.condition:
        license_id = _("{license}, {condition}").format(license=base.license, condition=_(base.condition))
    return _("{name} {parameters}M {download:>6,} MB {minutes:>4} min  {license}").format(
        name=base.name.ljust(max(len(other.name) for other in recommended_bases())),
        parameters=base.parameters,
        download=base.download,
        minutes=base.minutes,
        license=license_id,
    )
