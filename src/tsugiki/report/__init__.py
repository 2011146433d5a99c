"""What a person looks at: data before a run, in the terminal and as a page, and pages of runs and comparisons."""
