"""ACTS: the only code that touches Dask, processes, sockets and threads."""
