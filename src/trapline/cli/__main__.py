"""`python -m trapline.cli`."""

import sys

from trapline.cli import main

sys.exit(main())
