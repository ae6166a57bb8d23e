"""Attacks on the library's own claims: lower bounds on epsilon from canaries, run through the production step."""
