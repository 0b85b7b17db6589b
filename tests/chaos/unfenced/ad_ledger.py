"""ad_ledger, unfenced."""

from tests.chaos.unfenced import main

main("ad_ledger")
