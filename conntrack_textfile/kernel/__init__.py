"""The kernel's connection table: its sources and formats. All that depends on Linux is here."""
