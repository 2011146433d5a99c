"""The command line: functions that typer reads as commands; each calls the library and prints the result."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "app": "root_command version_line",
        "before_a_run": "aozora_command",
        "flags": "FlagsOf Given as_command settings_text words_of yaml_value",
        "help": "HELP_ATTRIBUTES message_of",
        "look": "report_command",
        "mistakes": "near_flags",
        "summary": "print_summary",
        "terminal": "print_table",
    },
)
