"""`python -m services.privacy staff-key <file>`: what a person of the staff does once."""

import sys

from services.privacy.identify import staff_key

if __name__ == "__main__":
    if sys.argv[1:2] != ["staff-key"]:
        sys.stderr.write("privacy: unknown command; known: staff-key\n")
        sys.exit(2)
    sys.exit(staff_key(sys.argv[2:]))
