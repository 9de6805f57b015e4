"""Training data to generator checkpoints."""

import os

# How long OpenMP threads spin for each other before they sleep; read once, when torch is first imported. The default
# of 300,000 rounds is made for a machine of one's own. With two threads, in ms a step of the `quick` recipe:
#     default  16.5 on a quiet machine, 104-154 with one core taken by somebody else
#     3,000    19 and 45
#     0        27 and 35
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
