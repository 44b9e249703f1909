"""`python -m raybust` is the command `raybust`."""

from raybust.cli import main

if __name__ == "__main__":
    main()
