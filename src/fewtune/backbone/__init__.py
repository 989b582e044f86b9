"""One pre-trained language model and its tokenizer. The only package that imports transformers."""
