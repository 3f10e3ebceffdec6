"""What looks after a store: audit, export, backups, the key file."""
