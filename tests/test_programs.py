"""A program that is not installed: tests are skipped without it, but fail in CI."""

import pytest

from tests import programs


@pytest.mark.parametrize(
    ("environment", "outcome"), [({}, pytest.skip.Exception), ({"CI": "1"}, pytest.fail.Exception)]
)
def test_a_missing_program_skips_a_test_and_fails_it_in_ci(
    environment: dict[str, str], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "ENVIRONMENT", environment)
    with pytest.raises(outcome, match="apt-get install no-such-package"):
        programs.find("no-such-program", package="no-such-package")


def test_a_program_is_found_under_any_of_its_names() -> None:
    assert programs.find("no-such-program", "sh").endswith("/sh")
