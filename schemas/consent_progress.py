"""Event `consent-progress`: until when consent has told every choice on `consent-state` (K3).

No personal data. Told about once a second; who relies on consents and has heard nothing for some
seconds does not know whether one was withdrawn meanwhile.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from schemas.wire import Instant, WireModel


class ProgressName(StrEnum):
    """What has been told; one word, for the key."""

    CHOICES = "choices"


class ConsentProgressV1(WireModel):
    """Whatever the broker had of choices at an instant was told before. Natural key: both."""

    name: ProgressName
    until: Annotated[Instant, Field(description="By consent's clock.")]
