"""The settings of runs, and how they are read from files."""
