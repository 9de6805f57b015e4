import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: threads of all would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import training  # noqa: F401  # before any test imports torch: it sets how OpenMP's threads wait, which torch reads once
