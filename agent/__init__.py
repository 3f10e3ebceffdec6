"""The streaming agent: decides, learns, infers, serves."""
