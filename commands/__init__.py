"""One module for each subcommand: it parses arguments, calls the library and prints."""
