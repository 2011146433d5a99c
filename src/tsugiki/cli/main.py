"""The `tsugiki` command: finds the subcommand, prints errors for people."""

def main() -> None:
    """Run the command line."""
