"""pasto: a dial for a language model, trained from two words, measured and published."""
