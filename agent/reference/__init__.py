"""The reference: pages written from the declarations themselves, for docs/ and the terminal.

documented    fields of a struct with what its types and its docstring say of them
configuration every key of equipoise.toml, with an example of each table
interface     records of files, and the operations of the HTTP interface
commands      every command with its options and exit codes
"""
