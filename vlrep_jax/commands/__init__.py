"""Flags of groups of commands, a file each; `cli` adds them to its own and runs what is asked."""
