"""Serve one base with many adapters, by the HTTP interface of OpenAI: `tsugiki serve`."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter_loading": "load_served",
        "adapters": "ServedAdapters",
        "app": "new_app",
        "completions": "completion_logprobs",
        "connection": "client_of",
        "engine": "Engine",
        "errors": "ApiError",
        "growing_cache": "GrowingCache",
        "jobs": "Jobs",
        "limits": "EngineStopped Limits QueueFull WaitedTooLong",
        "metrics": "Metrics Timing",
        "page": "page_files",
        "prefixes": "BLOCK PrefixCache",
        "prompts": "token_text",
        "protocol": "ChatRequest CompletionRequest parse",
        "request": "Event Failed Output PromptScores Request ScoredToken",
        "rows": "CachedRows bytes_per_token",
        "run_processes": "LOG_FILE RunProcesses",
        "runs": "Runs",
        "sampling": "Chooser SamplingSettings draw_index",
        "security": "Access Guard MAX_BODY check check_origins check_token",
        "server": "Server check_access listen",
        "text": "TextStream",
        "training": "RunRequest Training Workspace workspace_routes",
    },
)
