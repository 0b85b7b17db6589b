"""sippy, tamed: one thread, no reordering, nothing printed, times that can be compared.

Every oddity of sippy 2.5.0 that needs changing in place is changed here; `leg.py` overrides the
rest. Importing this module changes sippy for the whole process.
"""

import sys
import time
from _thread import get_ident
from collections.abc import Callable
from typing import Any

import structlog
from sippy.Core.EventDispatcher import ED2
from sippy.SipConf import SipConf
from sippy.SipTransactionManager import SipTransactionManager
from sippy.SipURL import SipURL
from sippy.Time.MonoTime import MonoTime
from sippy.Time.Timeout import Timeout, TimeoutAbsMono
from sippy.Udp_server import Udp_server, Udp_server_opts

from services.call_control.sip.settings import Address
from services.chassis.logs import describe

log = structlog.get_logger(__name__)

USER_AGENT = "minutes"
TICK_MS = 10
"""Timers fire on the event loop's next tick, 100 a second."""

Handler = Callable[[Any, Any], tuple[Any, None, None]]


def mono() -> float:
    """Return the clock of all packet times, in seconds.

    sippy's MonoTime is CLOCK_MONOTONIC_RAW: it runs apart from `time.monotonic()`.
    """
    return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)


def after(delay_s: float, callback: Callable[..., object], *arguments: object) -> Any:
    """Call back in the SIP thread after a delay; 0 = after the packet being handled.

    Returns:
        A timer with `cancel()`.
    """
    return Timeout(callback, delay_s, 1, *arguments)


def at(mono_s: float, callback: Callable[..., object], *arguments: object) -> Any:
    """Call back in the SIP thread at an instant of `mono`; returns a timer with `cancel()`."""
    return TimeoutAbsMono(callback, MonoTime(monot=mono_s), *arguments)


class _Options(Udp_server_opts):
    """Socket settings.

    sippy's three sender threads per socket reorder packets (an ACK after its BYE): use one. Its
    SO_REUSEADDR lets two processes share a UDP port on Linux, each getting the other's packets.
    """

    nworkers = 1
    flags = 0


class _Manager(SipTransactionManager):
    model_udp_server = (Udp_server, _Options)


class _NoLog:
    """Takes sippy's message log and drops it: messages hold telephone numbers."""

    def write(self, *_: object, **__: object) -> None:
        """Drop."""


def _transport_address(url: Any) -> tuple[Any, str]:
    """Replace `SipURL.getTAddr`.

    sippy compares the transport by case, so that a far end's Contact with `;transport=UDP` (SIPp,
    many border controllers) makes every later request raise, the BYE too, and the paid leg stays
    up. Another transport than UDP we do not have: to try UDP is better than not to send a BYE.
    """
    return url.getAddr(), "udp"


def report(event: str, **__: object) -> None:
    """Log the exception being handled by its place only: its text may hold a SIP message.

    Takes the place of sippy's `dump_exception` too, which prints whole messages.
    """
    error = sys.exc_info()[1]
    place = {} if error is None else describe(error)
    log.error("sip failure", name=event.partition(" from ")[0], **place)


def _silence(*_: object, **__: object) -> None:
    """Replace `print` in sippy's modules: it prints messages and addresses."""


def _tame() -> None:
    SipURL.getTAddr = _transport_address
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] == "sippy":
            vars(module)["print"] = _silence
            if hasattr(module, "dump_exception"):
                vars(module)["dump_exception"] = report


class Stack:
    """The SIP stack of this process. `run` belongs to one thread, all the rest is called in it."""

    def __init__(self, local: Address, on_stray: Handler) -> None:
        """Prepare; `on_stray` answers requests that belong to no dialog."""
        self._local = local
        self._on_stray = on_stray
        self.config: dict[str, Any] = {}

    def open(self) -> None:
        """Bind the address. To be called in the thread that will `run`.

        Raises:
            OSError: the address is taken.
        """
        _tame()
        ED2.my_ident = get_ident()
        SipConf.my_uaname = USER_AGENT
        SipConf.my_address, SipConf.my_port = self._local
        self.config |= {
            "_sip_address": self._local[0],
            "_sip_port": self._local[1],
            "_sip_logger": _NoLog(),
        }
        self.config["_sip_tm"] = _Manager(self.config, self._on_stray)

    def run(self) -> None:
        """Handle packets and timers until `close`."""
        ED2.loop()

    def close(self) -> None:
        """Free the address and make `run` return."""
        self.config["_sip_tm"].shutdown()
        ED2.breakLoop()

    @staticmethod
    def call_soon(callback: Callable[..., object], *arguments: object) -> None:
        """Call back in the SIP thread, in order; may be called from any thread."""
        ED2.callFromThread(callback, *arguments)
