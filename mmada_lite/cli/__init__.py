"""The command line: a module a verb, with `add_arguments` and `run`. Only these files print; the library never imports them."""
