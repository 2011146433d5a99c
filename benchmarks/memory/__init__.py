"""Memory of steps, loads, merges and of very much text: what is planned, and what is measured."""
