"""What the command line does, one module per command; nothing heavy is imported before it is needed."""
