"""The fold of the log and what it owns; every byte of it is a function of the log alone.

fold            rows in log order, chunk by chunk, into all of the below
open_decisions  decisions that wait for an outcome, or for their place in decision order
attempts        who answered a decision, merged from the parts of its outcome
sticky_units    which decision opened the unit of a request
replay_index    SIM rows by context, and pairs of live and replayed rows
chunk           rows gathered for the chunk that is not finished
certified_sums  certified sums of the era, behind the watermark
monitor_feed    what the checks are fed at the end of a chunk
recovery        a fold from the newest checkpoint, or from where the log begins
"""
