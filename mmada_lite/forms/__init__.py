"""Forms that an answer must have: patterns and JSON schemas, as automata over tokens."""
