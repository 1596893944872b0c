"""``python -m marl_tr``: the same as ``marl-tr``."""

import sys

from marl_tr.cli import main

if __name__ == "__main__":
    sys.exit(main())
