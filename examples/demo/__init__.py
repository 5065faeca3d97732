"""The demonstration: a social network on SQLite, read by many processes while others write to it."""
