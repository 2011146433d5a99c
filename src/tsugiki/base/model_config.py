"""Load the configs of base models, and report the errors of other libraries in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tsugiki.base.resolve import config_folder
from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.io.file_names import MODEL_CONFIG_FILE
from tsugiki.io.json import read_json
from tsugiki.language import _

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def load_config(name: str) -> "PretrainedConfig":
    """Load a model's config; errors are those of `base.loading.load_model`."""
    folder = config_folder(name)
    with loading_errors(name):
        return read_config(folder)


def read_config(folder: Path, *, trust_remote_code: bool = False) -> "PretrainedConfig":
    """Read the config in a model's folder, without settings that the folder should not decide.

    Raises:
        Exception: transformers raises exceptions of any class; see `loading_errors`.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    kind = read_json(folder / MODEL_CONFIG_FILE).get("model_type")
    if isinstance(kind, str) and kind not in CONFIG_MAPPING and not trust_remote_code:
        raise TsugikiError(
            _(
                "{folder} is a model of the type {kind}, which transformers {version} does not know; a newer "
                "release may"
            ).format(folder=folder, kind=error_text(kind, 40), version=__version__)
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    if config.model_type == "rwkv":
        # In evaluation mode, RWKV would halve the weights of its later layers, and not those of an adapter in them. The
        # rescaling only prevents overflow in float16.
        config.rescale_every = 0
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        # Old configs can switch gradient checkpointing on. It costs time, so only the user may switch it on.
        if part is not None:
            vars(part).pop("gradient_checkpointing", None)
    return config


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn exceptions of other libraries, which may be of any class, into a `TsugikiError` that names the model."""
    try:
        yield
    except TsugikiError:
        raise
    except BaseException as error:
        if not is_ordinary(error):
            raise
        raise TsugikiError(
            _("{name} cannot be loaded: {error}").format(name=name, error=error_text(error) or type(error).__name__)
        ) from error
