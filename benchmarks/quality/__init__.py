"""What settings, dtypes, methods and losses do to what a run learns, and whether results are those of other tools."""
