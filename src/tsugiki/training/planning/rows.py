"""The number of rows of a run's training data, before its model is loaded."""

from tsugiki.data.blocks import pack
from tsugiki.data.encoding import document_end
from tsugiki.io.progress import ProgressDisplay
from tsugiki.training.config import RunConfig
from tsugiki.training.model import load_run_tokenizer
from tsugiki.training.preparation import read_data


def rows_of_data(config: RunConfig, tokens: int, progress: ProgressDisplay) -> int:
    """Return the number of rows if documents can share a row. The tokens stay in the cache for the run.

    Args:
        config: the settings of the run.
        tokens: tokens of a row.
        progress: where to show the progress.

    Raises:
        TsugikiError: the data cannot be read or split.
    """
    tokenizer = load_run_tokenizer(config)
    split = read_data(config, tokenizer, progress)
    return len(pack(split.store, split.train, tokens, document_end(tokenizer), share_rows=True))
