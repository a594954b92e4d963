"""Linux: where the table is read, and its two grammars. The only place that knows it."""
