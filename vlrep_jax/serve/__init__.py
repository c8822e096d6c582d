"""`vlrep serve`: an index in the browser and by HTTP. It needs the extra `serve`."""
