"""The subcommands of histories by user id, which join the server's stores with tables and data sets."""
