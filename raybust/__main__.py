"""Runs the command `raybust` as `python -m raybust`."""

from raybust.cli import main

if __name__ == "__main__":
    main()
