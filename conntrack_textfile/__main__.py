"""``python -m conntrack_textfile``, and the command conntrack-textfile."""

import gc
import os
import sys

# Before the imports: a run of write is too short to need garbage collection.
gc.disable()


def run() -> None:
    """Run the command line of this process and exit."""
    try:
        # Imported here: Ctrl-C during the imports must not print a traceback either.
        from conntrack_textfile.cli import main

        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    # Not sys.exit(): all output is written, and the teardown of the interpreter takes as
    # long as to read a small table.
    os._exit(status)


if __name__ == "__main__":
    run()
