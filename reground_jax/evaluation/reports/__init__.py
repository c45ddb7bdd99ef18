"""What a study found: numbers, sentences, figures, pages."""
