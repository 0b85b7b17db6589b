"""Periods, starts, persons in words, German and English: what the generated texts are made of.

Numbers come from the rules and from nowhere else, so that text and deed cannot differ (R-H1).
"""

from collections.abc import Mapping
from typing import assert_never

from schemas.retention import DocumentClass
from services.privacy.declare import LegalBasis, PeriodStart, Purpose
from services.retention.schedule import (
    AtOncePeriod,
    DocumentsPeriod,
    HoursPeriod,
    Language,
    MonthsPeriod,
    Rule,
    RuleAction,
    Schedule,
    ThreatPeriod,
    UsePeriod,
    YearsPeriod,
)

Texts = Mapping[Language, str]
_DAY_HOURS = 24
_ORDINALS = (
    *("", "", "second ", "third ", "fourth ", "fifth "),
    *("sixth ", "seventh ", "eighth ", "ninth ", "tenth "),
)
"""The calendar year after another needs no number."""


def _texts(german: str, english: str) -> Texts:
    return {Language.DE: german, Language.EN: english}


STARTS: Mapping[PeriodStart, Texts] = {
    PeriodStart.EVENT: _texts("dem Ereignis", "the event"),
    PeriodStart.USE_END: _texts("dem Ende der Nutzung", "the end of the use"),
    PeriodStart.CALL_END: _texts("dem Ende des Gesprächs", "the end of the call"),
    PeriodStart.CONSENT_END: _texts("dem Ende der Einwilligung", "the end of the consent"),
    PeriodStart.CONTRACT_END: _texts("dem Ende des Vertrags", "the end of the contract"),
    PeriodStart.INVOICE_SENT: _texts("dem Versand der Rechnung", "the sending of the invoice"),
    PeriodStart.PURPOSE_FULFILLED: _texts(
        "der Erfüllung des Zwecks", "the fulfilment of the purpose"
    ),
    PeriodStart.REJECTION_ANNOUNCED: _texts(
        "der Bekanntgabe der Absage", "the announcement of the rejection"
    ),
    PeriodStart.BLOCK_LIFTED: _texts("der Aufhebung der Sperre", "the lifting of the block"),
}

ACTIONS: Mapping[RuleAction, Texts] = {
    RuleAction.NEVER_STORE: _texts("wird nicht gespeichert", "never stored"),
    RuleAction.DROP: _texts("gelöscht", "deleted"),
    RuleAction.ANONYMISE: _texts(
        "gelöscht; es bleiben anonymisierte Statistiken", "deleted; anonymised statistics remain"
    ),
    RuleAction.DELETE: _texts("gelöscht", "deleted"),
    RuleAction.BLOCK_THEN_DELETE: _texts("gesperrt, dann gelöscht", "blocked, then deleted"),
}

CLASSES: Mapping[DocumentClass, Texts] = {
    DocumentClass.BOOKING_VOUCHER: _texts(
        "Buchungsbelege und Rechnungen", "booking vouchers and invoices"
    ),
    DocumentClass.BOOKS: _texts("Bücher und Abschlüsse", "books and accounts"),
    DocumentClass.BUSINESS_LETTER: _texts("Geschäftsbriefe", "business letters"),
}

PURPOSES: Mapping[Purpose, Texts] = {
    Purpose.PAGE: _texts("Beantwortung von Seitenabrufen", "Answering requests of pages"),
    Purpose.AD_FINANCED_USE: _texts(
        "Erwerb und Verbrauch von Verbindungszeit", "Earning and spending connection time"
    ),
    Purpose.CALL: _texts("Herstellung und Abrechnung von Gesprächen", "Connecting, settling calls"),
    Purpose.AD_SETTLEMENT: _texts(
        "Abrechnung mit dem Werbepartner", "Settling with the ad partner"
    ),
    Purpose.NETWORK_SETTLEMENT: _texts(
        "Abrechnung mit anderen Netzbetreibern", "Settling with other network operators"
    ),
    Purpose.PERSONALISED_ADVERTISING: _texts("Personalisierte Werbung", "Personalised advertising"),
    Purpose.DATA_SECURITY: _texts("Datensicherheit", "Data security"),
    Purpose.FAULT_FINDING: _texts("Fehlersuche", "Finding faults"),
    Purpose.CONSENT: _texts(
        "Beachtung und Nachweis von Einwilligungen", "Honouring and proving consent"
    ),
    Purpose.ACCOUNTABILITY: _texts("Rechenschaft", "Accountability"),
    Purpose.DISCLOSURE: _texts("Auskunft an Behörden", "Information of authorities"),
    Purpose.PAID_SERVICE: _texts("Bezahlte Verträge", "Paid contracts"),
    Purpose.CONTACT: _texts("Kontakt und Beratung", "Contact and advice"),
    Purpose.APPLICATION: _texts("Bewerbungen", "Job applications"),
    Purpose.NUMBER_BLOCKING: _texts("Sperrung von Rufnummern", "Blocking of numbers"),
}

_VISITORS = _texts("Besucher", "visitors")
_CALL_PARTIES = _texts("Besucher, Angerufene", "visitors, persons called")
_CUSTOMERS = _texts("Kunden", "customers")

PERSONS: Mapping[Purpose, Texts] = {
    Purpose.PAGE: _VISITORS,
    Purpose.AD_FINANCED_USE: _VISITORS,
    Purpose.CALL: _CALL_PARTIES,
    Purpose.AD_SETTLEMENT: _VISITORS,
    Purpose.NETWORK_SETTLEMENT: _CALL_PARTIES,
    Purpose.PERSONALISED_ADVERTISING: _VISITORS,
    Purpose.DATA_SECURITY: _VISITORS,
    Purpose.FAULT_FINDING: _CALL_PARTIES,
    Purpose.CONSENT: _VISITORS,
    Purpose.ACCOUNTABILITY: _texts(
        "Beschäftigte; Personen, deren Daten gelesen oder übermittelt werden",
        "staff; persons whose data is read or transferred",
    ),
    Purpose.DISCLOSURE: _texts(
        "Personen, über die Behörden Auskunft verlangen", "persons whom authorities ask about"
    ),
    Purpose.PAID_SERVICE: _CUSTOMERS,
    Purpose.CONTACT: _texts(
        "Anfragende, Interessenten, Lieferanten", "enquirers, prospects, suppliers"
    ),
    Purpose.APPLICATION: _texts("Bewerberinnen und Bewerber", "applicants"),
    Purpose.NUMBER_BLOCKING: _texts("Inhaber gesperrter Nummern", "owners of blocked numbers"),
}
"""Categories of persons (Art. 30(1)(c) GDPR)."""

BASES: Mapping[LegalBasis, Texts] = {
    basis: _texts(
        basis.value.replace("(1)", " Abs. 1 Buchst. ").replace("(", "").replace(")", "") + " DSGVO",
        f"{basis.value} GDPR",
    )
    for basis in LegalBasis
}


def period(rule: Rule, schedule: Schedule, language: Language) -> str:
    """Return a rule's period in words."""
    return _german(rule, schedule) if language is Language.DE else _english(rule, schedule)


def _english(rule: Rule, schedule: Schedule) -> str:
    start = STARTS[rule.period_start][Language.EN]
    match rule.period:
        case UsePeriod(idle_minutes=minutes):
            words = (
                "for the duration of the use; it ends when the page's connection is closed"
                f" or after {minutes} idle minutes"
            )
        case HoursPeriod(hours=hours):
            words = f"at most {_hours(hours)} hours after {start}"
        case ThreatPeriod(normal_hours=hours, special_months=months):
            words = (
                f"without a threat not beyond the use; as a rule at most {hours // _DAY_HOURS} days"
                f" after {start}; under a special threat as a rule not over {months} months, and"
                " only for the addresses concerned. Each assessment ends by itself, at the latest"
                f" after {schedule.threat_review_months} months"
            )
        case YearsPeriod(years=years):
            words = f"until the end of the {_ORDINALS[years]}calendar year after {start}"
        case MonthsPeriod(months=months):
            words = f"at most {months} months after {start}"
        case AtOncePeriod():
            words = f"until {start}"
        case DocumentsPeriod(block_after_calendar_years=years, keep_calendar_years=keep):
            words = (
                f"until the end of the {_ORDINALS[years]}calendar year after {start};"
                " then blocked, counted from the end of the year in which the document was made:"
                f" {_classes(keep, Language.EN)}"
            )
        case _:
            assert_never(rule.period)
    return words


def _german(rule: Rule, schedule: Schedule) -> str:
    start = STARTS[rule.period_start][Language.DE]
    match rule.period:
        case UsePeriod(idle_minutes=minutes):
            words = (
                "für die Dauer der Nutzung; sie endet mit dem Schließen der Verbindung der Seite"
                f" oder nach {minutes} Minuten ohne Aktivität"
            )
        case HoursPeriod(hours=hours):
            words = f"höchstens {_hours(hours)} Stunden nach {start}"
        case ThreatPeriod(normal_hours=hours, special_months=months):
            words = (
                "ohne Gefährdung nicht über die Nutzung hinaus; in der Regel höchstens"
                f" {hours // _DAY_HOURS} Tage nach {start}; bei besonderer Gefährdung in der Regel"
                f" nicht über {months} Monate und nur die betroffenen Adressen. Jede Beurteilung"
                f" endet von selbst, spätestens nach {schedule.threat_review_months} Monaten"
            )
        case YearsPeriod(years=years):
            words = f"bis zum Ende des {_nth(years)}Kalenderjahres nach {start}"
        case MonthsPeriod(months=months):
            words = f"höchstens {months} Monate nach {start}"
        case AtOncePeriod():
            words = f"bis zu {start}"
        case DocumentsPeriod(block_after_calendar_years=years, keep_calendar_years=keep):
            words = (
                f"bis zum Ende des {_nth(years)}Kalenderjahres nach {start}; dann gesperrt,"
                " gerechnet ab dem Ende des Jahres, in dem die Unterlage entstand:"
                f" {_classes(keep, Language.DE)}"
            )
        case _:
            assert_never(rule.period)
    return words


def _hours(hours: int) -> str:
    days, rest = divmod(hours, _DAY_HOURS)
    return str(hours) if rest or days == 1 else f"{days} x {_DAY_HOURS}"


def _nth(years: int) -> str:
    return "" if years == 1 else f"{years}. "


def _classes(keep: Mapping[DocumentClass, int], language: Language) -> str:
    years = "Jahre" if language is Language.DE else "years"
    return ", ".join(f"{CLASSES[name][language]} {keep[name]} {years}" for name in DocumentClass)
