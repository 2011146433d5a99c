"""Serve one base with many adapters, by the HTTP interface of OpenAI: `tsugiki serve`."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "completions": "completion_logprobs",
        "errors": "ApiError ClientDisconnected",
        "http_app": "new_app",
        "jobs": "Jobs",
        "page": "page_files",
        "prompt_tokens": "token_text whole_text",
        "protocol": "MAX_BODY ChatRequest CompletionRequest parse",
        "runs_view": "LOG_FILE RunProcesses Runs",
        "security": "Access Guard check check_hosts check_origins",
        "served_adapters": "ServedAdapters load_served",
        "server": "Server check_access client_of listen",
        "tools": "ForcedCalls WrittenCalls response_template",
        "train_view": "RunFields RunRequest Training Workspace workspace_routes",
        "uploads": "Uploads",
    },
)
