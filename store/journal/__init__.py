"""A store that answers at the speed of an append: SQLite behind a tail of checked frames."""
