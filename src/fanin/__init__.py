"""fanin: start every parameter of a PyTorch model right."""
