"""Photos to records (offline) and records to batches."""
