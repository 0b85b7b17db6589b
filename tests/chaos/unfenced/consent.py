"""consent, unfenced."""

from tests.chaos.unfenced import main

main("consent")
