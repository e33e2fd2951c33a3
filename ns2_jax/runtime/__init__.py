"""The ground: mesh, state, step, optimiser, checkpoints, metrics, cluster. Knows no model."""
