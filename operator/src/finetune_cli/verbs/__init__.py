"""The commands. main.VERBS names the module and attribute of each click command."""
