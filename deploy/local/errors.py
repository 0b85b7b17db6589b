"""The one error of the local stack: a sentence a person can act on."""


class StackError(RuntimeError):
    """The stack cannot do what was asked; the message says why and what mends it."""
