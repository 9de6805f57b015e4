"""HTTP: one front door, a file per protocol."""
