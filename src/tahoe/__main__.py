"""``python -m tahoe``, and ``torchrun -m tahoe``."""

import sys

from tahoe.cli import main

sys.exit(main())
