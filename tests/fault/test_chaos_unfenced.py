"""Negative control of the fault runs (issue 4, 3): without fence and natural keys they must fail.

Goal: the verdict can fail. Method: the run of test_chaos.py, same plan, on services whose two
safeguards against doubles are taken out (tests/chaos/unfenced; nothing in services/ knows of it).
"""

from pathlib import Path

import pytest

from tests.chaos.run import lines, run, short_plan

pytestmark = [pytest.mark.fault, pytest.mark.integration, pytest.mark.timeout(600)]


async def test_without_fence_and_keys_the_same_run_fails(tmp_path: Path) -> None:
    """Negative control: a verdict that cannot fail shows nothing."""
    said: list[str] = []
    outcome = await run(tmp_path / "stack", short_plan(), said.append, unfenced=True)
    report = "\n".join([*said, *lines(outcome)])
    assert not outcome.holds, report
    assert any("credited twice (L3)" in what for what in outcome.wrong), report
    assert any("l3_each_event_credits_once" in what for what in outcome.wrong), report
