"""What `training.evaluate` is made of: a classifier of our own, and numbers that compare two sets of its features."""
