"""Serve one base with many adapters, by the HTTP interface of OpenAI: `tsugiki serve`."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter_loading": "load_served",
        "completions": "completion_logprobs",
        "connection": "client_of",
        "disconnect": "ClientDisconnected",
        "errors": "ApiError",
        "http_app": "new_app",
        "jobs": "Jobs",
        "metrics": "Metrics",
        "page": "page_files",
        "prompt_tokens": "token_text",
        "protocol": "MAX_BODY ChatRequest CompletionRequest parse",
        "run_processes": "LOG_FILE RunProcesses",
        "runs_view": "Runs",
        "security": "Access Guard check check_origins",
        "served_adapters": "ServedAdapters",
        "server": "Server check_access listen",
        "train_view": "RunRequest Training Workspace workspace_routes",
    },
)
