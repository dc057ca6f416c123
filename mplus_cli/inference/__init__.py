"""Using a model: placing it on a device, putting text into memory, answering, and saying where an answer came from."""
