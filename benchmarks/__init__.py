"""Side-by-side measurements; each prints a table and writes JSON or JSON lines. results/ keeps dated figures."""
