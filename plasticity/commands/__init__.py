"""The commands of the command line, one module each: a ``main(arguments) -> exit code``."""
