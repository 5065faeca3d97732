"""What builds and checks the documentation site; no part of the library."""
