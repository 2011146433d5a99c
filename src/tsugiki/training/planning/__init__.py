"""Estimates of the memory, disk and time that a run needs, before its model is loaded (`tsugiki plan`)."""
