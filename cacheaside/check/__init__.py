"""``cacheaside check``: is an answer ever older than an acknowledged invalidation allows?"""
