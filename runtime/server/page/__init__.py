"""The page at ``/``: a chat in the browser, over the same model and store as the APIs."""
