"""Proof logging: events of a search, and the certificate made of them."""
