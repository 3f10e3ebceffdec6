"""The event log: its vocabulary (records, column batches), its contract and its stores."""
