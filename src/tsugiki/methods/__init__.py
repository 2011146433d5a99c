"""Fine-tuning methods: a module for each kind of adapter, and a table with a row for each method."""
