"""DECIDES which task may use what, where and when. Pure: events in, commands out."""
