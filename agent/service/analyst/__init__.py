"""The analyst: a process that follows the log and does the heavy reading."""
