"""What every client of the Kubernetes API has to know, without any I/O: paths, paging and error answers.

The operator's asynchronous client and the command line's synchronous one send the requests.
"""
