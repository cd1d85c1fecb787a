"""`python -m hypertrail` is the `hypertrail` command."""

from .cli import main

raise SystemExit(main())
