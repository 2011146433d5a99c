"""The output of `tsugiki` without arguments: the steps from a text to an adapter, with a command for each."""

import typer

from tsugiki.cli.version import version_line
from tsugiki.language import _, marked

_TOUR = marked("""\
A small adapter is trained on your text, on top of a language model that
stays as it is. The way from a text to an adapter:

  try it, offline            tsugiki quickstart
  get texts                  tsugiki aozora --author 梶井基次郎 --out kajii.jsonl
  answer four questions      tsugiki new
  see what will be learned   tsugiki preview --model embedded --data kajii.jsonl
  train                      tsugiki train --model embedded --data kajii.jsonl --out runs/kajii
  read what it writes        tsugiki generate --adapter runs/kajii --prompt 檸檬は
  talk to it                 tsugiki chat runs/kajii
  measure it                 tsugiki eval --adapter runs/kajii --data other.txt
  keep it by name            tsugiki adapters add runs/kajii
  give it away               tsugiki push kajii USER/kajii

A text of your own is a .txt file, or .jsonl, .csv or .parquet. Each command
ends with the next one; tsugiki COMMAND --help has examples, and
tsugiki --help lists all commands.
""")


def print_tour() -> None:
    """Print the tour."""
    typer.echo(f"{version_line()}\n\n{_(_TOUR)}", nl=False)
