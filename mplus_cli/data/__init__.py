"""Text: sources and chunks for injection, and the data that training and evaluation are made of."""
