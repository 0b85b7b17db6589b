"""What deployment says when it cannot go on."""


class ProvisionError(RuntimeError):
    """What exists contradicts what is declared; the message says what a person has to decide."""
