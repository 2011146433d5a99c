"""Read and split the data of a run: texts, or answers of preference tuning."""

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.io.progress import ProgressDisplay
from tsugiki.training.data.preferences import read_preferences
from tsugiki.training.data.split import DatasetSplit, split_texts
from tsugiki.training.settings.config import RunConfig


def read_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the data of a run, and mix other text into them."""
    if config.preference is not None:
        return read_preferences(config, tokenizer, progress)
    return split_texts(config, tokenizer, progress)
