"""The whole story in one terminal: `python -m deploy.demo` (`make demo`, `VISITORS=50`).

A stack of its own, marked as a simulation; visitors who use the public interface only; telephones
with real tones; then the auditor's view: the evidence, the deletion, and the search for leftovers.
"""
