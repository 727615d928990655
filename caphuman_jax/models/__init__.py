"""The networks, one a file; `registry` builds them from a configuration."""
