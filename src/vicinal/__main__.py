"""`python -m vicinal`."""

from .cli import main

raise SystemExit(main())
