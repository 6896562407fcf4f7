"""The verbs that talk to a cluster: access to it, what is shown of it, and files on their way there and back."""
