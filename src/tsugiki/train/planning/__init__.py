"""What a run will need, before its model is loaded: memory, disk and time (`tsugiki plan`)."""
