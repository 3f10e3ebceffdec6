"""What looks after a store.

audit, audit_chain, audit_rows  whether the log is what was written and follows from its rules
export, export_sums             tidy tables of the log, and of what an interval rests on
backups                         copies of a store with its key, and putting them back
key_file, atomic_files          the secret key; files and folders that appear whole or not at all
"""
