"""A small application on the default cache, for the commands that name a function."""
