"""Pages, tables and plots of runs, comparisons, adapters and methods, and previews of training data."""
