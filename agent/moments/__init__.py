"""Mergeable sufficient statistics: the only state the estimators read (METHOD section 2).

additive  sums that add, rows sorted by cell, centred second moments, hashed groups
scorer    OBS and EXP rows that scorers are fitted to; SIM rows that values are averaged over
arms      rewards of EXP per model, and of today's routing
state     all of them together, to and from bytes
codec     versioned bytes of named arrays
"""
