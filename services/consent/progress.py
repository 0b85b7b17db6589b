"""Says until when every choice has been told, so that gates know what they do not know (K3).

Without it a gate would rely for ever on what it heard before this service stood still: nobody can
tell from a topic's silence whether there was nothing to say.
"""

from typing import Any

from schemas import topics
from schemas.consent_progress import ConsentProgressV1, ProgressName
from services.chassis.clock import sleep
from services.chassis.produce import Producer
from services.chassis.service import Service

EVERY_S = 1.0
_TIMEOUT_S = 5.0


async def tell_progress(service: Service[Any]) -> None:
    """Tell it about once a second; each process does, for all of them.

    Not by the outbox: it is told after what was told by the outbox, and nothing is lost with it.

    Raises:
        errors.Transient: Kafka is away.
    """
    producer = Producer(service.sink, service=service.declaration.name, timeout_s=_TIMEOUT_S)
    while True:
        until = await service.handled_until(topics.CONSENT)
        if until is not None:
            event = ConsentProgressV1(name=ProgressName.CHOICES, until=until)
            await producer.send(
                topics.CONSENT_PROGRESS, event, event_id=service.ids.new(), time=until
            )
        await sleep(EVERY_S)
