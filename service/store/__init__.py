"""The database: transactions, named SQL statements, and one module of functions per table."""
