"""Text from a model, for samples, `generate`, `chat` and `serve`: one engine, one way of sampling.

`generate_text` and `generate_texts` compute in the calling thread; `Engine` does the same for requests of many threads.
Both step a `Scheduler`, which batches rows, and each row has a `Chooser` of tokens and a `TextStream`.
"""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "batch": "find_batch_mode",
        "key_value_cache": "CachedRows GrowingCache bytes_per_token",
        "decoding": "decode_attention plain_decode_attention use_decode_attention",
        "engine": "Engine",
        "grammar": "Grammars Matcher choice_grammar json_grammar regex_grammar token_bytes",
        "generate": "continue_rows generate_text generate_texts",
        "prefixes": "BLOCK PrefixCache",
        "prompt": "Prompt as_prompt configured_ends learned_conversations prompt_tokens",
        "request": (
            "BatchMode EngineStopped Event Failed Limits Output PromptScores QueueFull Request ScoredToken "
            "WaitedTooLong"
        ),
        "row": "Row",
        "sampling": "Chooser Sampling TextStream draw_index repetition_penalty_of with_penalty_of",
        "scheduler": "Scheduler",
    },
)
