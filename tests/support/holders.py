"""Systems outside that keep records: a register with a key each, and what they sign."""

import hashlib
from collections.abc import Iterable
from typing import Any

from schemas.record import RecordV1
from schemas.retention import RECORD_KINDS, RetentionReceiptV1
from services.chassis.received import Received
from services.privacy import receipts
from services.privacy.chain import SigningKeys
from services.privacy.staff import PrivateKey, key_id_of
from services.retention.holders import HolderRegister, record_message


def seed_of(holder: str) -> str:
    """Return a holder's private key: it follows from the name."""
    return hashlib.sha256(holder.encode()).hexdigest()


def entry(holder: str, **changed: Any) -> dict[str, Any]:
    """Return a holder's entry in the register, in JSON's types."""
    key = {"public_key": PrivateKey(seed_of(holder)).public_key, "valid_from": "2020-01-01"}
    return {
        "name": holder,
        "since": "2020-01-01",
        "contract_on": "2019-12-01",
        "kinds": sorted(RECORD_KINDS),
        "keys": [key],
    } | changed


def register(holders: Iterable[str]) -> HolderRegister:
    """Return a register of these."""
    return HolderRegister.model_validate({"holders": [entry(name) for name in holders]})


def signing_keys(holder: str) -> SigningKeys:
    """Return what a holder signs with."""
    seed = seed_of(holder)
    return SigningKeys({key_id_of(PrivateKey(seed).public_key): seed})


def signed(told: Received[RecordV1], by: str | None = None) -> Received[RecordV1]:
    """Return what was told with the signature of its holder, or of another one."""
    keys = signing_keys(by or told.event.holder)
    key_id, signature = keys.sign(record_message(told.event, told.id))
    update = {"key_id": key_id, "signature": signature.hex()}
    return told._replace(event=told.event.model_copy(update=update))


def signed_receipt(receipt: RetentionReceiptV1) -> RetentionReceiptV1:
    """Return a receipt with its holder's signature."""
    return receipts.sign(signing_keys(receipt.service), receipt)
