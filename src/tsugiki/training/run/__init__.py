"""Whole runs: the stages of one, continuing it, sweeps, planning, previews, merging."""
