"""Training configurations (ml_collections), one a file; installed as `caphuman_jax.configs`."""
