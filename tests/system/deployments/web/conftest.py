"""Fixtures of the fast tests: stores and pages."""

from tests.deployments.conftest import filled, filled_and_names, names
from tests.deployments.web.conftest import slow, url

__all__ = ["filled", "filled_and_names", "names", "slow", "url"]
