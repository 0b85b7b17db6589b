"""`make prove-deletion`: canaries go through the whole platform, and afterwards nobody finds them.

Before the deadline each canary is found, so that the search is shown to work; after it none is, in
any form, in any file of the stack; what a legal hold names is found, and nothing else; after its
release nothing. Writes a report for programs (JSON) and a page for a data-protection officer.
"""
