"""How any model is trained on many workers."""

import os

# How threads of torch's products wait for each other; read once, when torch is loaded. By default they spin
# for milliseconds, on the core that the thread they wait for may need (docs/tuning.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
