"""The database: transactions, named statements, and a module for each noun."""
