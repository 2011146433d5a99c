"""The commands `tsugiki adapters …`, one file for each."""
