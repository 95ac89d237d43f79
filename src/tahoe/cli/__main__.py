import sys

from tahoe.cli import main

sys.exit(main())
