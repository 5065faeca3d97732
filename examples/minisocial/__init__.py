"""A small social network as one would build it: SQLAlchemy below, FastAPI or Flask above, a cache between."""
