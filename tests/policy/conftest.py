"""The two documents of the design, which must load as they stand."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def fleet() -> Path:
    return HERE / "fleet.yaml"


@pytest.fixture(scope="session")
def single() -> Path:
    return HERE / "single.yaml"
