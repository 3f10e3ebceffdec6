"""Shadow replay: cached contexts sent to candidate models, their outputs kept as SIM rows."""
