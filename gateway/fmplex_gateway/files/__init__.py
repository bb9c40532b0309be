"""Files over HTTP: uploads that are streamed to the artifact store, and what people read and delete of them."""
