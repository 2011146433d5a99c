"""Read and split the data of a run: texts, or answers of preference tuning."""

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.io.progress import ProgressDisplay
from tsugiki.training.config import RunConfig
from tsugiki.training.preference_data import read_preferences
from tsugiki.training.split_data import DatasetSplit, split_texts


def read_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase, progress: ProgressDisplay) -> DatasetSplit:
    """Read, tokenise and split the data of a run, and mix other text into them."""
    if config.preference is not None:
        return read_preferences(config, tokenizer, progress)
    return split_texts(config, tokenizer, progress)
