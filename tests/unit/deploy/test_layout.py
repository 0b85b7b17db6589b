"""Ports, secrets and state of a local stack."""

import socket
import stat
from pathlib import Path

import pytest

from deploy.local.errors import StackError
from deploy.local.layout import PORT_MAX, PORT_MIN, Layout, choose_ports, read_document, slot_of


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "stack")
    made.prepare()
    return made


def test_ports_are_below_the_ephemeral_range_and_stay_the_same(layout: Layout) -> None:
    names = ["postgres", "kafka", "call_control_sip"]
    ports = layout.ports(names, {})
    assert len(set(ports.values())) == len(names)
    assert all(PORT_MIN <= port <= PORT_MAX for port in ports.values())
    assert layout.ports(names, {}) == ports


def test_a_port_that_somebody_took_meanwhile_is_replaced(layout: Layout) -> None:
    first = layout.ports(["kafka"], {})["kafka"]
    with socket.create_server(("127.0.0.1", first)):
        second = layout.ports(["kafka"], {})["kafka"]
    assert second != first
    assert layout.ports(["kafka"], {})["kafka"] == second


def test_a_chosen_port_wins_over_the_remembered_one(layout: Layout) -> None:
    layout.ports(["gateway"], {})
    chosen = choose_ports(["other"], {}, {}, slot=slot_of("other seed"))["other"]
    assert layout.ports(["gateway"], {"gateway": chosen}) == {"gateway": chosen}


def test_a_chosen_port_that_is_taken_is_named_with_its_setting(layout: Layout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = choose_ports(["x"], {}, {}, slot=slot_of("x"))["x"]
        with (
            socket.create_server(("127.0.0.1", taken)),
            pytest.raises(StackError, match=f"Port {taken} for gateway.*STACK_PORT_GATEWAY"),
        ):
            layout.ports(["gateway"], {"gateway": taken})
        if port > PORT_MAX:
            with pytest.raises(StackError, match="is not between"):
                layout.ports(["gateway"], {"gateway": port})


def test_a_udp_port_is_tried_as_udp(layout: Layout) -> None:
    port = layout.ports(["call_control_sip"], {})["call_control_sip"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", port))
        assert layout.ports(["call_control_sip"], {})["call_control_sip"] != port


def test_secrets_are_made_once_and_readable_by_their_owner_only(layout: Layout) -> None:
    first = layout.secrets(["postgres"])
    second = layout.secrets(["postgres", "ad_ledger"])
    assert second["passwords"]["postgres"] == first["passwords"]["postgres"]
    assert second["passwords"]["ad_ledger"] != first["passwords"]["postgres"]
    assert second["view_ticket_keys"] == first["view_ticket_keys"]
    assert len(bytes.fromhex(first["view_ticket_keys"]["k1"])) == 32
    mode = (layout.folder / "secrets.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_damaged_file_is_named(layout: Layout) -> None:
    layout.state_path.write_text("{", encoding="ascii")
    with pytest.raises(StackError, match=r"state\.json is damaged"):
        read_document(layout.state_path)
