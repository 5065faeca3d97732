"""The endpoints, a router a service.

They are plain functions: the database's driver blocks, so FastAPI runs them in threads. Their annotations
are values, not text, for they name what each app has made for itself.
"""
