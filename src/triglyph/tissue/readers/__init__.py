"""One reader a platform; each returns a SectionDraft."""
