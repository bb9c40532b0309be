"""One packed row of tokens through a model: layout, attention, linears with adapter segments."""
