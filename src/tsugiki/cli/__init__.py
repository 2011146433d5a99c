"""The command line: one short file for each command, which parses arguments, calls a function and prints the result."""
