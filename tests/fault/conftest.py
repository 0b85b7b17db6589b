"""Fixtures only; helpers live in tests/support."""

from collections.abc import Iterator

import pytest

from deploy.provision import Infrastructure
from tests.support.counting import Counting, make_counting
from tests.support.stack import finish


@pytest.fixture
def counting(infra: Infrastructure) -> Iterator[Counting]:
    """A world of its own for the counting service."""
    made = make_counting()
    yield made
    finish(made.world.close())
