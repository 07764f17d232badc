"""How long decoding takes and where the time goes, beside what the machine can do and what others take."""
