"""An optimiser step and the loop of steps: losses, gradients, optimisers, checkpoints."""
