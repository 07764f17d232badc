"""What each word of the command line does: a module a verb. Only these files print; the library never imports them."""
