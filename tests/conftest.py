"""Fixtures only; helpers live in tests/support."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from deploy.provision import Infrastructure
from tests.support.stack import World, finish, infrastructure, make_world, new_prefix

# examples take as long as a busy machine makes them; what is too slow, pytest-timeout says
settings.register_profile("minutes", deadline=None)
settings.load_profile("minutes")


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
