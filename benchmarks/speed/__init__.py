"""Steps, processes and generation beside other tools and the limit of the machine: `python -m benchmarks.speed`."""
