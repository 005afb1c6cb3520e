"""Where the counters live. `open_store` picks a backend by URL."""
