"""The web page and the HTTP API: `caphuman studio` and `caphuman serve`."""
