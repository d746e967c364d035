"""`python -m cli` is `faas`."""

from cli.main import main

if __name__ == "__main__":
    main()
