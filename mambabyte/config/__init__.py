"""The typed settings of every command, and the sentences about mistakes in them."""
