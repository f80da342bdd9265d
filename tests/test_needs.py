"""A tool that is missing: its tests are skipped on a developer's machine, and fail in CI."""

import pytest

from tests.conftest import pytest_runtest_setup

SKIPPED, FAILED = pytest.skip.Exception, pytest.fail.Exception


@pytest.mark.parametrize(("ci", "outcome"), [("", SKIPPED), ("false", SKIPPED), ("true", FAILED)])
def test_a_missing_tool(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    outcome: type[BaseException],
) -> None:
    monkeypatch.setenv("CI", ci)
    request.node.add_marker(pytest.mark.needs("sh"))
    pytest_runtest_setup(request.node)
    request.node.add_marker(pytest.mark.needs("sh", "no-such-program"))
    with pytest.raises((SKIPPED, FAILED), match="no-such-program is not installed") as found:
        pytest_runtest_setup(request.node)
    assert found.type is outcome
