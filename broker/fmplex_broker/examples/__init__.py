"""Training data: the rows of files, the kinds of examples, and what is wrong with them. Pure; gateway and worker share it."""
