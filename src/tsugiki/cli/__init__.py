"""The command line: one short file for each command, which parses arguments, calls a function and prints the result."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "aozora": "aozora_command",
        "deferred": "changed_after_import",
        "examples": "EXAMPLES",
        "flags": "panel_of settings_of with_flags words_of yaml_value",
        "help": "message_of texts_of",
        "report": "report_command",
        "settings_file": "settings_text",
        "summary": "print_summary",
        "tables": "print_table",
        "usage": "near_flags",
        "version": "version_line",
    },
)
