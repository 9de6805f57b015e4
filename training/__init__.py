"""Training data to generator checkpoints."""
