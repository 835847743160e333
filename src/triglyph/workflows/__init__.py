"""What a verb does, end to end; light to import."""
