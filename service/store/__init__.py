"""The database: transactions, named statements, and a module of functions per noun."""
