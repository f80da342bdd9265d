"""Cached stages, and what they need."""

import training  # noqa: F401 - it says how threads wait, which must be said before anything loads torch
