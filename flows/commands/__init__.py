"""The verbs of the command line, by idea."""
