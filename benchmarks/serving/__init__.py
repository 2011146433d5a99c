"""`tsugiki serve` as its clients see it, and several adapters on one base."""
