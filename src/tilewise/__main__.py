"""`python -m tilewise` is the command line."""

import sys

if __name__ == "__main__":
    from tilewise.cli.main import main

    sys.exit(main())
