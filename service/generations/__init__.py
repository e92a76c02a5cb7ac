"""The life of a generation: submit, poll, ingest."""
