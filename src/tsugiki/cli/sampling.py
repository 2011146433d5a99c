"""Options of the commands that generate text, `generate` and `chat`; `eval` has some of them, too."""

from typing import Annotated, TypeAlias

import typer

from tsugiki.dtypes import LoadDtype

_SAMPLING = "Sampling"

Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Model: 'embedded', a folder, a GGUF file, or a hub id. Default: the base that the adapter names."
    ),
]
MaxNewTokens: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Largest number of new tokens.", rich_help_panel=_SAMPLING)
]
Temperature: TypeAlias = Annotated[
    float, typer.Option(min=0, help="0: always the most probable token.", rich_help_panel=_SAMPLING)
]
TopP: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0.01, max=1, help="Sample from the tokens with this total probability.", rich_help_panel=_SAMPLING
    ),
]
RepetitionPenalty: TypeAlias = Annotated[
    float,
    typer.Option(
        min=0.1,
        max=10,
        help="Above 1, such as 1.2: tokens that have occurred become less probable.",
        rich_help_panel=_SAMPLING,
    ),
]
Seed: TypeAlias = Annotated[
    int, typer.Option(min=0, help="The same seed gives the same text.", rich_help_panel=_SAMPLING)
]
Raw: TypeAlias = Annotated[
    bool, typer.Option("--raw", help="Continue prompts as plain text, although the adapter has learned conversations.")
]
System: TypeAlias = Annotated[
    str | None, typer.Option(help="System message, for adapters and models that hold conversations.")
]
AllowBaseMismatch: TypeAlias = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Load an adapter that was trained on another base.")
]
TrustRemoteCode: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings, with all your rights.")
]
BaseWeights: TypeAlias = Annotated[
    LoadDtype | None,
    typer.Option(
        "--dtype",
        help="Dtype of the base's weights. Default: int8 or nf4 if the adapter was trained on such a base, otherwise "
        "fp32.",
    ),
]
