"""The commands that talk to a cluster: requests, views of jobs, and transfers of files."""
