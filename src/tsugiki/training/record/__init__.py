"""What a run records and shows: `run.json`, results with their intervals, progress."""
