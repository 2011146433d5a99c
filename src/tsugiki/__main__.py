"""`python -m tsugiki` is the `tsugiki` command."""

from tsugiki.cli.main import main

main()
