"""What a replay or a study found, as plain data, and how it is drawn: text, Markdown, page."""
