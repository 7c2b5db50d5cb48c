"""`python -m gebt` is the command `gebt`."""

from gebt.cli import main

if __name__ == "__main__":
    main()
