"""What happens to a generation: it is submitted and polled, and reports are ingested."""
