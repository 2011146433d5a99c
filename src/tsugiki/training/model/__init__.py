"""The model of a run: what trains, notes on it, weights split over processes, saving."""
