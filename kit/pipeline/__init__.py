"""The notebooks as a chain: steps, freshness, running, checking, the command line (floor 7)."""
