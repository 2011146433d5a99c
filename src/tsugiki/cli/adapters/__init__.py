"""`tsugiki adapters …`: one thin file a command."""
