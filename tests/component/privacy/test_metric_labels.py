"""Every label of every metric that a service exports is classified (D5).

The registries are the real ones: each service is built as its process builds it, from its
environment, and not started.
"""

import importlib
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from services.chassis.declaration import SERVICES
from services.privacy import register
from services.privacy.declare import gaps


def labels(service: str, registry: CollectorRegistry) -> Iterator[tuple[str, str]]:
    """Yield (metric without the service's name, label); the library has no public way to ask."""
    for collector in registry._collector_to_names:
        name = collector._name  # type: ignore[attr-defined]  # of every metric that we make
        assert name.startswith(f"{service}_")
        for label in collector._labelnames:  # type: ignore[attr-defined]
            yield name.removeprefix(f"{service}_"), label


@pytest.fixture
def registry(world, service, monkeypatch):
    for name, value in world.environments[service].items():
        monkeypatch.setenv(name, value)
    return importlib.import_module(f"services.{service}.app").build().registry


@pytest.mark.parametrize("service", SERVICES)
async def test_every_label_is_classified_and_every_entry_is_a_label(registry, service):
    """D5, R-D5."""
    actual = list(labels(service, registry))
    classification = register.metrics(service)
    assert {"events", "retries"} <= {metric for metric, _ in actual}
    assert gaps(actual, classification) == []
    # a label that nobody thought of
    Counter("odd", "", ["number"], namespace=service, registry=registry)
    assert gaps(labels(service, registry), classification) == ["odd.number is not classified"]
