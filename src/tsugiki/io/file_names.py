"""Names of the files in the folders of models, adapters and runs."""

DATA_SUFFIXES = (
    ".txt", ".md", ".html", ".htm", ".epub", ".docx", ".pdf", ".eml", ".mbox", ".jsonl", ".json", ".csv", ".tsv",
    ".xlsx", ".parquet", ".zip",
)  # fmt: skip
"""The suffixes of the files that are read as data."""

MODEL_CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
"""A model's weights, if they are in one file."""
MODEL_INDEX_FILE = "model.safetensors.index.json"
"""The index of a model's weights, if they are in several files."""
MODEL_FILES = "model*.safetensors"
"""A pattern that matches all weight files of a model."""

GENERATION_CONFIG_FILE = "generation_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
OTHER_MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""Patterns of a model's files other than its weights: config, tokenizer, chat templates, licence. Pickled files and
code do not match."""
CHAT_TEMPLATES_FOLDER = "additional_chat_templates"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
"""The chat template of a tokenizer, or the chat template with which an adapter was trained."""

TOKENIZER_FILES = (TOKENIZER_CONFIG_FILE, "tokenizer.json", "special_tokens_map.json", CHAT_TEMPLATE_FILE)
"""The files of a tokenizer that is saved with an adapter."""

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
"""An adapter's weights."""
METADATA_FILE = "tsugiki.json"
"""The base, provenance and extra settings of an adapter or a merged model (see `tsugiki.adapters.metadata`)."""

RECORD_FILE = "run.json"
"""The record of a training run (see `tsugiki.training.record.run_record`)."""


MANIFEST_FILE = "manifest.json"
"""Sizes and digests of the files in a folder (see `tsugiki.io.digests`)."""
