"""Speed and memory beside other tools: the same work for each, in a process of its own, a step at a time by turns."""
