"""cacheaside: make a repository method fast and never wrong."""
