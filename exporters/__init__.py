"""From a training checkpoint to an artifact that has proven itself."""

import training  # noqa: F401  # first of all: it sets how OpenMP's threads wait, which torch reads once
