"""The policy: what may be done, as data."""
