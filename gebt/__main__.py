"""`python -m gebt` is the command `gebt`."""

from gebt.cli.main import main

if __name__ == "__main__":
    main()
