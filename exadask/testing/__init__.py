"""What tests of exadask, and of code that uses it, need."""
