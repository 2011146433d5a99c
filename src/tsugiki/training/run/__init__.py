"""Whole runs: the stages of one, continuing it, comparing several, planning, previews, merging."""
