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
        "errors": "ApiError",
        "jobs": "Jobs",
        "metrics": "Metrics",
        "page": "page_files",
        "prompts": "token_text",
        "protocol": "ChatRequest CompletionRequest parse",
        "run_processes": "LOG_FILE RunProcesses",
        "runs": "Runs",
        "security": "Access Guard MAX_BODY check check_origins check_token",
        "server": "Server check_access listen",
        "training": "RunRequest Training Workspace workspace_routes",
    },
)
