"""TRANSLATES between exadask and batch systems: text in, text out; runs nothing."""
