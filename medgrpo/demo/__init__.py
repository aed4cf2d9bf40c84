"""A tiny Qwen-VL that learns on two CPU cores: its architecture, its tokenizer and its warm-started weights."""
