"""``python -m conntrack_textfile``, and the command conntrack-textfile."""

import gc
import os
import sys

# Before anything is imported: write ends before there is garbage worth looking for.
gc.disable()

from conntrack_textfile.cli import main  # noqa: E402


def run() -> None:
    """Run the command line of this process and end it."""
    status = main(sys.argv[1:])
    # Not sys.exit(): all output is written, and to tidy up the modules takes
    # as long as to read a small table.
    os._exit(status)


if __name__ == "__main__":
    run()
