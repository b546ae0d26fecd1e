"""SHOWS: progress bars and what objects look like in a terminal and a notebook."""
