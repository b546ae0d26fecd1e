"""What is remembered: the journal of a run, memoised results, and what restarting needs."""
