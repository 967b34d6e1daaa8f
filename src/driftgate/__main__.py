"""`python -m driftgate`."""

from .cli import main

main()
