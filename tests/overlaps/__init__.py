"""Two processes on PostgreSQL whose transactions overlap, statement by statement."""
