"""retention, unfenced."""

from tests.chaos.unfenced import main

main("retention")
