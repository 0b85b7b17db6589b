"""Signatures of receipts: who says that something was deleted can be held to it (R-D9).

All services write to one topic, so that Kafka's rights do not say whose a receipt is; its signature
does, and goes on doing so where the receipt is shown to somebody else.
"""

import json
from collections.abc import Mapping

from schemas.retention import RetentionReceiptV1
from services.privacy.chain import SigningKeys, VerifyKeys, canonical


def sign(keys: SigningKeys, receipt: RetentionReceiptV1) -> RetentionReceiptV1:
    """Return the receipt with the service's signature."""
    key_id, signature = keys.sign(message(receipt))
    return receipt.model_copy(update={"key_id": key_id, "signature": signature.hex()})


class Signatories:
    """Which services may sign receipts, and with which keys.

    JSON `{"<service>": {"<key id>": "<64 hex digits of the public key>"}}`.
    """

    def __init__(self, text: str) -> None:
        """Read the setting.

        Raises:
            ValueError: it is not of the form.
        """
        self._keys = _read(text)

    def replace(self, text: str) -> None:
        """Take other keys in place of these."""
        self._keys = _read(text)

    def is_valid(self, receipt: RetentionReceiptV1) -> bool:
        """Whether a receipt is signed by the service that it names; without keys it is not."""
        keys = self._keys.get(receipt.service)
        if keys is None or receipt.key_id is None or receipt.signature is None:
            return False
        return keys.is_valid(receipt.key_id, bytes.fromhex(receipt.signature), message(receipt))


def _read(text: str) -> dict[str, VerifyKeys]:
    found = json.loads(text)
    if not isinstance(found, Mapping):
        raise ValueError("public keys must be a JSON object by service")  # noqa: TRY004 - a setting
    return {service: VerifyKeys(keys) for service, keys in found.items()}


def message(receipt: RetentionReceiptV1) -> bytes:
    """Return what is signed."""
    unsigned = receipt.model_dump(mode="json", exclude={"key_id", "signature"})
    for count in unsigned["counts"]:
        # a service of the version before does not know the field, and signs without it
        if not count["n_figures"]:
            del count["n_figures"]
    return b"receipt\0" + canonical(unsigned)
