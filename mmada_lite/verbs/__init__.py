"""What each word of the command line does. Only these files and `cli` print; the library never imports them."""
