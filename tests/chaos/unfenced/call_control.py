"""call_control, unfenced."""

from tests.chaos.unfenced import main

main("call_control")
