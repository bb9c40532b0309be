"""Files over HTTP: uploads that are streamed to the artifact store, and what people read and delete of them.

form.py       what an upload is made of, as its bytes come
uploads.py    from a request to the store
downloads.py  from the store to a response, whole or a range
keeping.py    the list and the bytes together; what expires
off_loop.py   calls of the store, off the event loop and bounded in time
routes.py     the endpoints
"""
