"""The signal matrix of the gateway: every metric it declares is seen to move (style 3.7)."""

from tests.support.signals import Signals
from tests.unit.gateway.support import Gateway, WebSocketClient, ad_event, cookie_of


async def test_every_metric_of_gateway_moves() -> None:
    """A metric that nobody ever saw move proves nothing."""
    gateway = Gateway()
    signals = Signals(gateway.registry)
    client, visitor_id = gateway.visitor()
    body = {"events": [ad_event(gateway.ticket(visitor_id))]}
    response = await client.post("/v1/ad-events", json=body)
    assert response.is_success, response.text
    gateway.limits.forget_idle()
    socket = await WebSocketClient(gateway, headers=cookie_of(client)).opened()
    assert (await socket.next_json())["type"] == "balance"
    signals.look()
    await socket.leave()
    assert signals.unmoved() == set()
    # and back: a gauge that only rises proves nothing either
    gateway.clock.advance(gateway.settings.idle_s + 1)
    gateway.limits.forget_idle()
    assert gateway.metric("gateway_sockets") == 0
    assert gateway.metric("gateway_remembered_keys", kind="address") == 0
    assert gateway.metric("gateway_remembered_keys", kind="visitor") == 0
