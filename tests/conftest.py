import training  # noqa: F401  # before any test imports torch: it sets how OpenMP's threads wait, which torch reads once
