"""From a training checkpoint to an artifact that has proven itself."""
