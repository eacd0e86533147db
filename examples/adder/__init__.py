"""A small decoder trained to add: Llama architecture, bytes in, bytes out."""
