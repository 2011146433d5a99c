"""Tsugiki: LoRA fine-tuning that can be read, whose files work everywhere, fast on the machine you have."""
