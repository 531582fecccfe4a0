"""`python -m pasto_cli` and the `pasto` command."""

from pasto_cli.cli.app import main

if __name__ == "__main__":
    main()
