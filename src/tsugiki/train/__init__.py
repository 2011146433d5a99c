"""One run: its settings (`config`), the run itself (`run`), and what it is made of."""
