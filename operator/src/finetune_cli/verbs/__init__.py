"""One verb a file. Each has a click command named `command`; main.VERBS lists them."""
