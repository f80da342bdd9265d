"""Distributed training of any model."""

import os

# Make OpenMP threads sleep while they wait for each other; torch reads this once, when it is loaded. By
# default they spin for milliseconds on a core that another thread may need (docs/tuning.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
