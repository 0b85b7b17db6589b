"""Small SIP telephones with real speech, for the demo and the tests.

`PhoneExchange` is one UDP socket that plays the trunk for many numbers; a `Phone` answers (or does
not), sends a tone as RTP and says which tone it hears. Nothing is recorded, there are only
counters (R-C6). `python -m deploy.phones --help` runs an exchange where every number answers.
"""

from deploy.phones.exchange import PhoneExchange
from deploy.phones.phone import Mode, Phone, PhoneCall

__all__ = ["Mode", "Phone", "PhoneCall", "PhoneExchange"]
