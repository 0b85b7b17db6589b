"""What staff signed, held against the register of staff (R-D3, R-C4, R-C5)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.privacy import staff
from services.privacy.calendar import berlin_date
from services.privacy.chain import Fault, Finding
from services.privacy.staff import BY_SCHEDULE, StaffRegister


@dataclass(frozen=True, kw_only=True)
class Act:
    """One thing that somebody did, as it is recorded.

    Attributes:
        seq: its place among all, ascending in time.
        content: what is signed: the row without key id and signature.
        pair: what it is half of, where two persons decide; None = one does.
        is_for_schedule: whether a service may do it by itself, unsigned.
    """

    seq: int
    what: str
    staff_id: str
    at: datetime
    content: Mapping[str, Any]
    key_id: str | None
    signature: bytes | None
    pair: Hashable | None = None
    is_for_schedule: bool = False

    @property
    def is_signed(self) -> bool:
        """Whether it claims to be signed."""
        return self.key_id is not None or self.signature is not None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of acts.

    Attributes:
        n_signed: by staff, whether well or not.
        n_unsigned: of persons, from before the first signed one: no findings.
    """

    n_signed: int
    n_unsigned: int
    findings: Sequence[Finding]


def judge(acts: Sequence[Act], register: StaffRegister) -> Judged:
    """Judge acts by the register, in their order.

    Acts were not signed before the program could: what is unsigned before the first signed one is
    counted, after it it is a finding.
    """
    first = min((act.seq for act in acts if act.is_signed), default=None)
    findings: list[Finding] = []
    decided: dict[Hashable, str] = {}
    n_unsigned = 0
    for act in sorted(acts, key=lambda one: one.seq):
        is_old = first is None or act.seq < first
        n_unsigned += is_old and act.staff_id != BY_SCHEDULE
        findings += (Finding(seq=act.seq, fault=one) for one in _faults(act, register, is_old))
        owner = register.owner_of.get(act.key_id or "")
        if owner is not None and act.pair is not None:
            # by the key and not by what the row says: one person with two ids is one
            if decided.get(act.pair) == owner.staff_id:
                findings.append(Finding(seq=act.seq, fault=Fault.SAME_PERSON))
            decided.setdefault(act.pair, owner.staff_id)
    n_signed = sum(act.is_signed for act in acts)
    return Judged(n_signed=n_signed, n_unsigned=n_unsigned, findings=findings)


def _faults(act: Act, register: StaffRegister, is_old: bool) -> list[Fault]:  # noqa: FBT001 - private
    if act.staff_id == BY_SCHEDULE:
        return [] if act.is_for_schedule and not act.is_signed else [Fault.NOT_SIGNED]
    if not act.is_signed:
        return [] if is_old else [Fault.NOT_SIGNED]
    owner = register.owner_of.get(act.key_id or "")
    if owner is None or act.signature is None:
        return [Fault.KEY_UNKNOWN]
    key = owner.key(act.key_id or "")
    assert key is not None
    if not staff.is_signed(key.public_key, act.signature, act.what, act.content):
        return [Fault.SIGNATURE_FORGED]
    if owner.staff_id != act.staff_id:
        return [Fault.KEY_OF_ANOTHER]
    day = berlin_date(act.at)
    return [] if owner.is_with_us(day) and key.covers(day) else [Fault.KEY_NOT_VALID]
