"""Whole tasks made of runs: pretrain, compare, sweep, preview, merge, quickstart."""
