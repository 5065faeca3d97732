"""The protocol, without I/O: generators that yield commands and receive replies."""
