from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture
def sample():
    """The bytes of a recorded-format stream, by file name."""
    return lambda name: (SAMPLES / name).read_bytes()
