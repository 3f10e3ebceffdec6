"""Bulk ingestion: rows of other people's logs to records, and records into a store."""
