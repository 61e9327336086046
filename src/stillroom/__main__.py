"""`python -m stillroom` does what `stillroom` does."""

import sys

from stillroom.cli import main

if __name__ == "__main__":
    sys.exit(main())
