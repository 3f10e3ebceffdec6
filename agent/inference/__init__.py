"""Certified inference: bounds that hold at every moment (METHOD section 4).

score        what one row says of every candidate's value; sums of scores
prediction   what a rule freezes for its rows: predictions and how far they are trusted
mixture      the bounded sequence, which needs no further assumption
per_model    sequences on each model's own rewards, without weights
asymptotic   the asymptotic sequence, certified only under a stated condition
levels       how delta is divided over what is said
certificate  all sums of one set of rows, the sequence that is certified, bounds at a level
projection   the point nearest to an estimate that contradicts nothing certified
"""
