"""What the program exits with where something is wrong."""

FAILED, BAD_USAGE = 1, 2
