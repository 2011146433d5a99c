"""What is known of a run before its weights are loaded: shapes, cost, memory, the dtype of the base."""
