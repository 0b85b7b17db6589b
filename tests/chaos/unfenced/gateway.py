"""gateway, unfenced."""

from tests.chaos.unfenced import main

main("gateway")
