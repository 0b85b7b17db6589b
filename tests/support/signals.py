"""Which metrics of a registry have been seen to move (the signal matrix, style 3.7)."""

from prometheus_client import CollectorRegistry


class Signals:
    """Looks at a registry again and again; a family has moved once a sample of it was not 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._moved: set[str] = set()

    def look(self) -> None:
        """Take note of the present values."""
        for family in self._registry.collect():
            if any(s.value for s in family.samples if not s.name.endswith("_created")):
                self._moved.add(family.name)

    def unmoved(self) -> set[str]:
        """Return the families that no look has seen to move."""
        self.look()
        return {family.name for family in self._registry.collect()} - self._moved
