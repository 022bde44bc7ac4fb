"""Programs written for NATTEN run in an environment of their own; `make test-clients` makes it."""

import os

collect_ignore_glob = [] if os.environ.get("VICINAL_CLIENTS") else ["test_*.py"]
