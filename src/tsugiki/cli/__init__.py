"""The command line: functions that typer reads as commands; each calls the library and prints the result."""

from tsugiki.lazy import lazy_names

__getattr__, __dir__ = lazy_names(__name__)
