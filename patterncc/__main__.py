"""``python -m patterncc`` is the command line."""

from patterncc.cli import main

if __name__ == "__main__":
    main(prog_name="patterncc")
