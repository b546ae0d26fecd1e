"""The ``exadask`` command: parse, call the API, print."""
