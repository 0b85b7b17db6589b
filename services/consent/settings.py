"""Settings of this service; the environment's names begin with `CONSENT_`."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from services.chassis.settings import ServiceSettings
from services.privacy.chain import SigningKeys


def _are_keys(value: SecretStr) -> SecretStr:
    SigningKeys.from_json(value.get_secret_value())
    return value


Keys = Annotated[SecretStr, AfterValidator(_are_keys)]
"""JSON `{"<key id>": "<64 hex digits>"}`, Ed25519 seeds; the first signs, all verify."""


class Settings(ServiceSettings):
    """What signs: a key for each of three things, so that none can be made with another's."""

    model_config = SettingsConfigDict(env_prefix="CONSENT_", frozen=True, extra="ignore")

    anchor_keys: Keys
    """Sign the anchors of the chains and what orders took from them (ADR 0022, 0033)."""

    proof_keys: Keys
    """Sign the receipts that visitors get (R-F2)."""

    receipt_keys: Keys
    """Sign the receipts that retention gets (ADR 0027)."""

    controller_iri: Annotated[str, Field(pattern=r"^https://\S+$")] = "https://callpartner.de/"
    controller_name: Annotated[str, Field(min_length=1, max_length=200)] = "callpartner.de"
    controller_contact: Annotated[str, Field(pattern=r"^(mailto:|https://)\S+$")] = (
        "https://callpartner.de/"
    )
    """Where a person exercises their rights; receipts say so (R-H1)."""
    controller_page: Annotated[str, Field(pattern=r"^https://\S+$")] = "https://callpartner.de/"
    """Where a choice is changed or withdrawn."""

    @model_validator(mode="after")
    def _keeps_keys_apart(self) -> Self:
        rings = [
            set(SigningKeys.from_json(one.get_secret_value()).public().values())
            for one in (self.anchor_keys, self.proof_keys, self.receipt_keys)
        ]
        if len(set.union(*rings)) < sum(map(len, rings)):
            raise ValueError("anchor_keys, proof_keys and receipt_keys must have no key in common")
        return self


def replace_apart(keys: SigningKeys, text: str, other: SigningKeys) -> None:
    """Take other keys in place of these, as at a rotation.

    Raises:
        ValueError: they are not of the form, or one is among the other ones.
    """
    new = SigningKeys.from_json(text)
    if not set(new.public().values()).isdisjoint(other.public().values()):
        raise ValueError("a key that signs something else already")
    keys.replace(text)
