"""The tasks behind commands: pretraining, comparisons, sweeps, previews, merging and the quickstart."""
