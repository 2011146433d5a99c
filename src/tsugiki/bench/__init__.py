"""Speed and memory of Tsugiki and of other tools: the same workload in separate processes that take turns."""
