"""Which key signs what: none signs two things (R-F2, R-D9)."""

import json
from itertools import combinations

import pytest
from pydantic import ValidationError

from deploy.local.environment import KEYS_OF
from services.consent.settings import Settings, replace_apart
from services.privacy.chain import SigningKeys

RINGS = ("anchor_keys", "proof_keys", "receipt_keys")


def settings(**keys: dict[str, str]) -> Settings:
    given = {name: json.dumps({"k1": f"{n:064x}"}) for n, name in enumerate(RINGS)}
    given |= {name: json.dumps(ring) for name, ring in keys.items()}
    return Settings.model_validate(
        {
            "kafka_bootstrap": "k:9",
            "kafka_username": "consent",
            "kafka_password": "-",
            "admin_port": 0,
            **given,
        }
    )


@pytest.mark.parametrize("pair", list(combinations(RINGS, 2)), ids=str)
def test_a_key_that_would_sign_two_things_stops_the_start(pair: tuple[str, str]) -> None:
    """R-F2: under whatever ids, and among the old ones too."""
    settings()
    one, other = pair
    with pytest.raises(ValidationError, match="no key in common"):
        settings(**{one: {"k1": "ab" * 32}, other: {"k2": "cd" * 32, "k9": "ab" * 32}})


def test_a_rotation_to_a_key_that_signs_something_else_is_refused() -> None:
    """R-F2: what was in force stays."""
    mine, other = SigningKeys({"k1": "11" * 32}), SigningKeys({"k1": "22" * 32})
    before = mine.public()
    with pytest.raises(ValueError, match="already"):
        replace_apart(mine, json.dumps({"k2": "22" * 32}), other)
    assert mine.public() == before
    replace_apart(mine, json.dumps({"k2": "33" * 32}), other)
    assert list(mine.public()) == ["k2"]


def test_the_stack_makes_each_of_them_by_itself() -> None:
    """R-C5: three kinds of key, and nobody but consent is told the secret ones."""
    kinds = {setting: kind for kind, setting in KEYS_OF["consent"].items()}
    assert set(kinds) == set(RINGS)
    assert len(set(kinds.values())) == len(RINGS)
    elsewhere = {
        (kind, setting)
        for name, told in KEYS_OF.items()
        for kind, setting in told.items()
        if name != "consent" and kind in kinds.values()
    }
    assert elsewhere == {("consent_receipt_keys", "receipt_public_keys")}
