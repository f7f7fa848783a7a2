"""For people: figures, tables, the report (floor 6)."""
