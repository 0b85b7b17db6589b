"""Fixtures only; helpers live in tests/support."""

from collections.abc import Iterator

import pytest

from deploy.provision import Infrastructure
from tests.support.stack import World, finish, infrastructure, make_world, new_prefix


@pytest.fixture(scope="session")
def infra() -> Infrastructure:
    """Real PostgreSQL and Kafka, shared by all workers of the run."""
    return infrastructure()


@pytest.fixture(scope="module")
def world(infra: Infrastructure, request: pytest.FixtureRequest) -> Iterator[World]:
    """A world of this module's own, for the services it names in `WORLD_SERVICES` (else all)."""
    services = getattr(request.module, "WORLD_SERVICES", None)
    made = finish(make_world(new_prefix(), services))
    yield made
    finish(made.close())
