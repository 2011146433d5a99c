"""What other programs read: adapters and whole models as GGUF files, Modelfiles, and what each program refuses."""
