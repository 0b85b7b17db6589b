"""The one error of the demo: a sentence that a person can act on."""


class DemoError(RuntimeError):
    """A step did not come true; the message says which, in one sentence."""


class BusyError(DemoError):
    """Another demo holds the folder: nothing in it may be touched."""
