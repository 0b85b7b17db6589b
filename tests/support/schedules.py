"""The schedule in force with a threat assessment that is never too old.

The real one lapses by itself when nobody reviews it (R-C3); a test that runs by the real clock is
about something else.
"""

import json
from datetime import timedelta
from pathlib import Path

from services.chassis.clock import SystemClock
from services.retention.schedule import Schedule
from services.retention.settings import DEFAULT_SCHEDULE
from tests.support.stack import World


def reviewed() -> Schedule:
    """Return the default schedule, its normal threat assessed two months ago."""
    document = json.loads(DEFAULT_SCHEDULE.read_text("utf-8"))
    day = SystemClock().now().date() - timedelta(days=60)
    assessments = [
        *document["threat_assessments"],
        {"assessed_on": day.isoformat(), "level": "normal", "author": "test", "reason": "test"},
    ]
    document["threat_assessments"] = sorted(assessments, key=lambda entry: entry["assessed_on"])
    return Schedule.model_validate_json(json.dumps(document))


def give_reviewed(world: World, folder: Path) -> None:
    """Let the retention service of a world start with the reviewed schedule."""
    path = folder / "reviewed.json"
    path.write_text(reviewed().model_dump_json(exclude_none=True), "utf-8")
    environment = world.environments["retention"]
    assert isinstance(environment, dict)
    environment["RETENTION_SCHEDULE_PATH"] = str(path)
