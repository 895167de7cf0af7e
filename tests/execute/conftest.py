"""NaN, infinities and overflow are what many of these tests are about: NumPy need not warn of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Arithmetic without warnings."""
    with np.errstate(all="ignore"):
        yield
