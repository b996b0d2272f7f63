"""Results: many fits in one table, and what the table says."""
