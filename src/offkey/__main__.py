"""`python -m offkey` is the `offkey` command."""

from offkey.cli import main

main()
