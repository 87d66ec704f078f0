"""Small helpers that every room uses: lazy names, text for people, command-line numbers. No torch."""
