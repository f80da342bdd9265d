"""The stores and pages of the fast tests."""

from tests.deployments.conftest import filled, filled_and_names, names
from tests.deployments.web.conftest import slow, url

__all__ = ["filled", "filled_and_names", "names", "slow", "url"]
