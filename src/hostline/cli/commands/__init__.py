"""The sub-commands, one file each: a thin function that takes the arguments, and plain functions that do the work."""
