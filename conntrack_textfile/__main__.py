"""``python -m conntrack_textfile``, and the command conntrack-textfile."""

import sys

from conntrack_textfile.cli import main


def run() -> int:
    """Run the command line of this process; its exit status."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
