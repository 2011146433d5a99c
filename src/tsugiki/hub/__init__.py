"""Adapters on the Hugging Face Hub: client, model card, publication."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "card": "CardData is_own_card model_card",
        "client": "HUB_FILES pull push refuse_unknown_base",
        "publication": "Publication published_base",
    },
)
