"""Text from a model, for samples, `generate`, `chat` and `serve`: one engine, one way of sampling."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "engine": "Engine",
        "growing_cache": "GrowingCache",
        "limits": "EngineStopped Limits QueueFull WaitedTooLong",
        "prefixes": "BLOCK PrefixCache",
        "prompts": "prompt_tokens",
        "request": "Event Failed Observer Output PromptScores Request ScoredToken Timing",
        "rows": "CachedRows bytes_per_token",
        "sampling": "Chooser SamplingSettings draw_index",
        "text": "TextStream",
        "texts": "Sampling generate_text generate_texts",
    },
)
