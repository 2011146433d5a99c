"""Adapters on the Hugging Face Hub: client, model card, publication."""
