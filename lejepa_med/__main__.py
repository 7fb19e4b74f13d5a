"""`python -m lejepa_med VERB`."""

import sys

from lejepa_med.cli.main import main

sys.exit(main())
